// Health: the device and the agent, now and in the last hours, and the findings of the check-up.

import { get, post } from "../api.js";
import { lineChart } from "../charts.js";
import { fill, h } from "../dom.js";
import { bytes, moment, number, span } from "../format.js";
import { known, t } from "../texts.js";

const REFRESH_MS = 5000;

export default {
  id: "health",
  icon: "health",
  mount(root, app) {
    const page = h("div", { class: "health" }, h("p", { class: "muted" }, t("app.loading")));
    const doctor = makeDoctor(app);
    root.append(page, doctor.element);
    const load = async () => {
      try {
        const found = await get("/api/health");
        fill(page, found.status ? parts(found) : h("p", { class: "problem" }, found.problem));
        doctor.show(found.doctor);
      } catch (problem) {
        fill(page, h("p", { class: "problem" }, problem.shown));
      }
    };
    load();
    const timer = setInterval(() => document.hidden || load(), REFRESH_MS);
    return () => clearInterval(timer);
  },
};

function parts({ status, info, series }) {
  const telemetry = status.telemetry || {};
  return [tiles(status, telemetry, info), charts(series, telemetry), cameras(status, telemetry), temperatures(telemetry), stages(status)];
}

function tile(title, value, more = "", kind = "") {
  return h("div", { class: `tile ${kind}` }, h("span", { class: "name" }, title), h("strong", {}, value), more && h("small", {}, more));
}

function tiles(status, telemetry, info) {
  const limit = telemetry.limits_c?.[telemetry.hottest_zone];
  const governor = status.governor || {};
  const reduced = (governor.step || 0) > 0;
  const state = { online: "good", degraded: "warn", stopping: "warn", starting: "warn" }[status.state] || "bad";
  const connection = status.delivery?.connection;
  const stuck = (status.stages || []).filter((one) => one.state === "stuck");
  const free = telemetry.disk_free_bytes;
  const unknown = t("health.unknown");
  const measured = (value, digits, unit) => (value === null || value === undefined ? "–" : `${number(value, digits)} ${unit}`);
  const absent = (value, otherwise = "") => (value === null || value === undefined ? unknown : otherwise);
  const hot = telemetry.throttled || (limit !== undefined && telemetry.hottest_c > limit - 5);
  return h(
    "div",
    { class: "tiles" },
    tile(t("health.state"), known("agent", status.state), status.reason, state),
    tile(t("health.hottest"), measured(telemetry.hottest_c, 0, "°C"), telemetry.throttled ? t("health.throttled", { reasons: (telemetry.throttle_reasons || []).join(", ") }) : [telemetry.hottest_zone, limit !== undefined && t("health.limit", { limit: number(limit) })].filter(Boolean).join(", ") || unknown, hot ? "bad" : ""),
    tile(t("health.power"), measured(telemetry.power_total_w, 1, "W"), absent(telemetry.power_total_w, telemetry.power_mode ? `${t("health.mode")} ${telemetry.power_mode}` : "")),
    tile(t("health.cpu"), measured(telemetry.cpu_percent, 0, "%"), telemetry.cpu_mhz ? `${number(telemetry.cpu_mhz)} MHz` : ""),
    tile(t("health.gpu"), measured(telemetry.gpu_percent, 0, "%"), absent(telemetry.gpu_percent, telemetry.gpu_mhz ? `${number(telemetry.gpu_mhz)} MHz` : "")),
    tile(t("health.governor"), reduced ? t("health.governor_step", { step: governor.step, steps: governor.steps }) : t("health.governor_none"), reduced ? governor.does || governor.reason : "", reduced ? "warn" : ""),
    tile(t("health.crops"), measured(telemetry.crops_per_s, 1, "")),
    tile(t("health.present"), number(telemetry.people_present), `${t("health.known")}: ${number(telemetry.identities)}`),
    tile(t("health.broker"), known("connection", connection), status.delivery?.problem || "", connection === "connected" || connection === "disabled" ? "" : "warn"),
    tile(t("health.outbox"), number(telemetry.outbox_rows), bytes(telemetry.outbox_bytes), telemetry.outbox_rows > 1000 ? "warn" : ""),
    tile(t("health.disk"), bytes(free), telemetry.disk_total_bytes ? `/ ${bytes(telemetry.disk_total_bytes)}` : "", free !== null && free < 1e9 ? "bad" : ""),
    tile(t("health.memory"), bytes(telemetry.process_memory_bytes), status.memory?.trouble || "", status.memory?.trouble ? "warn" : ""),
    tile(t("health.running"), span(status.uptime_s), `${t("health.version")} ${status.version}`),
    tile(t("health.network"), info.model?.name || "–", info.model ? `${info.model.backend}, ${info.model.precision}` : ""),
    stuck.length > 0 && tile(t("health.stages"), known("stage", "stuck"), stuck.map((one) => one.name).join(", "), "bad"),
  );
}

function charts({ times, figures }, telemetry) {
  const limit = telemetry.limits_c?.[telemetry.hottest_zone] ?? null;
  const chart = (title, name, more) => lineChart({ title, times, values: figures[name].map((value) => (value === null ? null : value * (more.factor || 1))), ...more });
  const drawn = [
    ["hottest_c", () => chart(t("health.hottest"), "hottest_c", { unit: "°C", limit, least: null })],
    ["power_total_w", () => chart(t("health.power"), "power_total_w", { unit: "W", digits: 1 })],
    ["cpu_percent", () => chart(t("health.cpu"), "cpu_percent", { unit: "%" })],
    ["gpu_percent", () => chart(t("health.gpu"), "gpu_percent", { unit: "%" })],
    ["crops_per_s", () => chart(t("health.crops"), "crops_per_s", { digits: 0 })],
    ["people_present", () => chart(t("health.present"), "people_present", {})],
    ["outbox_rows", () => chart(t("health.outbox"), "outbox_rows", {})],
    ["process_memory_bytes", () => chart(t("health.memory"), "process_memory_bytes", { unit: "MB", factor: 1e-6 })],
    ["governor_step", () => chart(t("health.governor"), "governor_step", {})],
  ];
  const measured = drawn.filter(([name]) => figures[name].some((value) => value !== null));
  if (!measured.length) return null;
  return h("section", { class: "card" }, h("h2", {}, t("health.charts"), h("small", {}, t("health.charts_since", { time: moment(times[0]) }))), h("div", { class: "charts" }, measured.map(([, draw]) => draw())));
}

/** A table that becomes cards on a phone: each cell has its title. */
export function table(titles, rows) {
  return h(
    "table",
    {},
    h("thead", {}, h("tr", {}, titles.map((title) => h("th", { scope: "col" }, title)))),
    h("tbody", {}, rows.map((cells) => h("tr", {}, cells.map((cell, at) => h("td", { dataset: { title: titles[at] } }, cell ?? "–"))))),
  );
}

function cameras(status, telemetry) {
  const titles = ["health.camera", "health.state", "health.rate", "health.delivered", "health.dropped", "health.skipped", "health.doing"].map((key) => t(key));
  const rows = (status.sources || []).map((one) => [one.camera, h("span", { class: `badge ${one.state}` }, known("source", one.state)), number(telemetry.frames_per_s?.[one.camera], 1), number(one.delivered), number(one.dropped), number(one.overload), one.reason]);
  return h("section", { class: "card" }, h("h2", {}, t("health.cameras")), table(titles, rows));
}

function temperatures(telemetry) {
  const zones = Object.entries(telemetry.temperatures_c || {});
  if (!zones.length) return null;
  const rows = zones.map(([zone, celsius]) => {
    const limit = telemetry.limits_c?.[zone];
    const scale = h("meter", { min: 0, max: limit || 100, high: (limit || 100) - 5, value: celsius, "aria-label": zone });
    return [zone, `${number(celsius, 1)} °C`, limit === undefined ? "–" : `${number(limit)} °C`, scale];
  });
  return h("section", { class: "card" }, h("h2", {}, t("health.temperatures")), table(["", t("health.temperatures"), t("health.limit", { limit: "" }).trim(), ""], rows));
}

function stages(status) {
  const rows = (status.stages || []).map((one) => [one.name, h("span", { class: `badge ${one.state}` }, known("stage", one.state)), one.doing]);
  return h("section", { class: "card" }, h("h2", {}, t("health.stages")), table([t("health.stage"), t("health.state"), t("health.doing")], rows));
}

function makeDoctor(app) {
  const button = h("button", { onclick: () => run() }, t("health.doctor_run"));
  const note = h("p", { class: "muted", role: "status" }, t("health.doctor_about"));
  const findings = h("div");
  let busy = false;
  const show = (doctor) => {
    if (busy || !doctor?.findings) return;
    fill(note, t("health.doctor_at", { time: moment(doctor.at) }));
    const rows = doctor.findings.map((one) => [one.name, h("span", { class: `badge ${one.state}` }, known("doctor", one.state)), one.found, one.advice]);
    if (findings.dataset.at === String(doctor.at)) return;
    findings.dataset.at = doctor.at;
    fill(findings, table([t("health.check"), t("health.state"), t("health.found"), t("health.advice")], rows));
  };
  const run = async () => {
    busy = button.disabled = true;
    fill(note, t("health.doctor_running"));
    try {
      const found = await post("/api/health/doctor");
      busy = false;
      show(found);
    } catch (problem) {
      fill(note, problem.shown);
    } finally {
      busy = button.disabled = false;
    }
  };
  return { element: h("section", { class: "card" }, h("h2", {}, t("health.doctor")), note, app.mayChange && button, findings), show };
}
