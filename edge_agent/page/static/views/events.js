// Events: live, newest first, filtered. A correction is shown at the event that it corrects as well.

import { get } from "../api.js";
import { fill, h } from "../dom.js";
import { exactly, moment, who } from "../format.js";
import { known, t } from "../texts.js";
import { details } from "./event_details.js";

const KINDS = ["matched", "enrolled", "corrected", "departed", "unknown", "person", "alert", "gap"];
const WAIT_MS = 300;
const MOST_ROWS = 500;

export default {
  id: "events",
  icon: "events",
  mount(root, app, [opened]) {
    const list = h("ol", { class: "events", "aria-live": "off" });
    const note = h("p", { class: "muted" });
    const older = h("button", { hidden: true, onclick: () => load(false) }, t("events.older"));
    const filters = makeFilters(app, () => load(true));
    root.append(filters.element, note, list, older);
    let last = "";
    let current = 0;

    const load = async (anew) => {
      const turn = (current += anew ? 1 : 0);
      let found;
      older.disabled = true;
      try {
        found = await get("/api/events", { ...filters.values(), before: anew ? "" : last });
      } catch (problem) {
        return fill(note, problem.shown);
      } finally {
        older.disabled = false;
      }
      if (turn !== current) return; // another filter was chosen meanwhile
      if (anew) fill(list);
      filters.setCameras(found.cameras);
      found.events.forEach((event) => list.append(row(event, app)));
      last = found.events.length ? found.events[found.events.length - 1].id : last;
      older.hidden = !found.more;
      fill(note, noteOf(found));
      if (anew && opened) list.querySelector(`[data-event="${CSS.escape(opened)}"] details`)?.setAttribute("open", "");
    };
    const noteOf = (found) => {
      if (!list.children.length) return filters.any() ? t("events.none_match") : t("events.none");
      return found.missed && !found.more ? t("events.missed") : "";
    };
    const ends = [
      app.socket.on("event", ({ event }) => {
        markCorrected(list, event);
        if (event.data.camera) filters.setCameras([event.data.camera]);
        if (!filters.passes(event)) return;
        const added = row(event, app);
        added.classList.add("fresh");
        list.prepend(added);
        fill(note);
        if (list.children.length > MOST_ROWS) {
          list.lastElementChild.remove();
          last = list.lastElementChild.dataset.event;
          older.hidden = false;
        }
      }),
      app.socket.on("forgotten", () => load(true)),
      app.socket.on("reload", () => load(true)),
    ];
    load(true);
    return () => ends.forEach((end) => end());
  },
};

function makeFilters(app, changed) {
  const choice = (label, any, values, shown) => h("select", { "aria-label": label, onchange: changed }, h("option", { value: "" }, any), values.map((value) => h("option", { value }, shown(value))));
  const camera = choice(t("events.camera"), t("events.any_camera"), [], (one) => one);
  const kind = choice(t("events.kind"), t("events.any_kind"), KINDS, (one) => t(`kind.${one}`));
  let timer = 0;
  const later = () => {
    clearTimeout(timer);
    timer = setTimeout(changed, WAIT_MS);
  };
  const person = h("input", { type: "search", placeholder: t("events.person"), "aria-label": t("events.person"), maxLength: 100, oninput: later });
  const from = h("input", { type: "datetime-local", onchange: changed });
  const to = h("input", { type: "datetime-local", onchange: changed });
  const seconds = (input, more) => (input.value ? Math.floor(new Date(input.value).getTime() / 1000) + more : "");
  const clear = () => {
    for (const input of [camera, kind, person, from, to]) input.value = "";
    changed();
  };
  const values = () => ({ camera: camera.value, kind: kind.value, person: person.value, from: seconds(from, 0), to: seconds(to, 59) });
  return {
    element: h(
      "form",
      { class: "filters", role: "search", "aria-label": t("events.filter"), onsubmit: (event) => event.preventDefault() },
      camera, kind, person,
      h("label", {}, t("events.from"), from),
      h("label", {}, t("events.to"), to),
      h("button", { type: "button", class: "quiet", onclick: clear }, t("events.clear")),
    ),
    values,
    /** Offer these cameras; the chosen one stays. */
    setCameras(cameras) {
      const offered = [...camera.options].map((one) => one.value);
      cameras.filter((one) => !offered.includes(one)).forEach((one) => camera.append(h("option", { value: one }, one)));
    },
    any: () => Object.values(values()).some((value) => value !== ""),
    /** Whether a new event passes, as the server would decide. */
    passes(event) {
      const data = event.data;
      const wanted = values();
      const text = wanted.person.trim().toLowerCase();
      const at = new Date(event.time).getTime() / 1000;
      return (
        (!wanted.camera || (data.camera ?? data.details?.camera) === wanted.camera) &&
        (!wanted.kind || [event.type.split(".")[1], data.kind].includes(wanted.kind)) &&
        (!text || (data.name || "").toLowerCase().includes(text) || text === String(data.number) || text === data.identity_id) &&
        (wanted.from === "" || at >= wanted.from) &&
        (wanted.to === "" || at <= wanted.to)
      );
    },
  };
}

function kindOf(event) {
  const kind = event.type.split(".")[1];
  if (kind === "alert") return event.data.active ? "alert" : "alert_over";
  return kind === "gap" ? "gap" : event.data.kind;
}

function subject(event) {
  const data = event.data;
  const kind = event.type.split(".")[1];
  if (kind === "alert") return data.message;
  if (kind === "gap") return t("line.gap", { count: data.count, reason: data.reason });
  const called = who(event.now ?? data.name, data.number);
  if (kind === "person" && data.kind === "named" && !data.name) return t("line.unnamed", { who: called });
  return kind === "person" ? t(`line.${data.kind}`, { who: called }) : called;
}

/** One event; its details open on request. */
function row(event, app) {
  const data = event.data;
  const kind = kindOf(event);
  const summary = h(
    "summary",
    {},
    h("time", { dateTime: event.time, title: exactly(event.time) }, moment(event.time)),
    h("span", { class: `badge ${kind} ${data.severity || ""}` }, known("kind", kind)),
    h("span", { class: "subject" }, subject(event)),
    h("span", { class: "where" }, data.camera || ""),
    typeof data.score === "number" ? scoreBar(data) : h("span"),
  );
  const body = h("div", { class: "details" });
  const element = h("li", { dataset: { event: event.id } }, h("details", { ontoggle: ({ target }) => target.open && !body.children.length && details(body, event, app) }, summary, body));
  if (event.corrected_by) addCorrection(element, event.corrected_by);
  return element;
}

function scoreBar(data) {
  const percent = (value) => `${Math.max(0, Math.min(100, value * 100))}%`;
  return h(
    "span",
    { class: "score", title: `${t("event.score")} ${data.score.toFixed(3)}` },
    h("span", { class: "bar" }, h("span", { class: "fill", style: { width: percent(data.score) } }), data.threshold !== null && h("span", { class: "mark", style: { left: percent(data.threshold) } })),
    h("span", { class: "value" }, data.score.toFixed(2)),
  );
}

function addCorrection(element, correction) {
  const data = correction.data;
  element.classList.add("corrected");
  element.append(h("p", { class: "correction" }, t("events.corrected", { time: moment(correction.time), who: who(correction.now ?? data.name, data.number) })));
}

function markCorrected(list, event) {
  const id = event.data.corrects;
  const element = id && list.querySelector(`[data-event="${CSS.escape(id)}"]`);
  if (element) addCorrection(element, event);
}
