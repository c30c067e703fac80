// Thresholds: how alike people are at this site, what a match needs, and what another threshold would change.

import { get, post } from "../api.js";
import { fill, h, svg } from "../dom.js";
import { moment, number, who } from "../format.js";
import { attempt } from "../people.js";
import { known, t } from "../texts.js";
import { facts } from "./event_details.js";
import { table } from "./health.js";

const WAIT_MS = 250;
const SERIES = ["together", "others", "matched"];
const STEP = 0.025;
const [WIDTH, ROW, LEFT] = [640, 62, 8];

export default {
  id: "thresholds",
  icon: "thresholds",
  mount(root, app) {
    const chart = h("div");
    const summary = h("div");
    const about = h("p", { class: "muted", role: "status" });
    const changes = h("div", { "aria-live": "polite" });
    const slider = h("input", { id: "threshold", type: "range", min: 0, max: 1, step: 0.01, disabled: true, oninput: () => moved() });
    const shown = h("output", { htmlFor: "threshold" });
    const apply = h("button", { class: "primary", onclick: () => set(Number(slider.value)) }, t("thresholds.apply"));
    const reset = h("button", { onclick: () => set(null) }, t("thresholds.reset"));
    let found = null;
    let timer = 0;
    let turn = 0;

    const draw = () => fill(chart, histogram(found, Number(slider.value)));
    const moved = () => {
      if (!found) return;
      shown.textContent = number(Number(slider.value), 2);
      draw();
      clearTimeout(timer);
      timer = setTimeout(estimate, WAIT_MS);
    };
    const estimate = async () => {
      const own = (turn += 1);
      try {
        const effect = await get("/api/thresholds/preview", { threshold: slider.value });
        if (own === turn) fill(changes, effectOf(effect));
      } catch (problem) {
        if (own === turn) fill(changes, h("p", { class: "muted" }, problem.shown));
      }
    };
    const set = async (value) => {
      const question = value === null ? t("thresholds.reset_about") : t("thresholds.apply_about", { value: number(value, 2) });
      if (!(await app.ask(t("thresholds.change"), h("p", {}, question), value === null ? t("thresholds.reset") : t("thresholds.apply")))) return;
      if (await attempt(app, () => post("/api/thresholds", { threshold: value }), t("thresholds.done"))) load();
    };
    const load = async () => {
      try {
        found = await get("/api/thresholds");
      } catch (problem) {
        apply.hidden = reset.hidden = !found;
        return fill(about, problem.shown);
      }
      const now = found.in_force;
      slider.value = now.value ?? 0.7;
      const fixed = now.rule === "configured";
      slider.disabled = false;
      apply.hidden = fixed || !app.mayChange;
      reset.hidden = now.rule !== "operator" || !app.mayChange;
      fill(about, fixed && t("thresholds.configured"));
      fill(summary, summaryOf(found));
      moved();
    };
    root.append(
      h("section", { class: "card" }, h("h2", {}, t("thresholds.now")), about, summary),
      h("section", { class: "card" }, h("h2", {}, t("thresholds.scores")), h("p", { class: "muted" }, t("thresholds.scores_about")), chart),
      h("section", { class: "card" }, h("h2", {}, t("thresholds.try")), h("p", { class: "muted" }, t("thresholds.try_about")), h("div", { class: "slider" }, h("label", { htmlFor: "threshold" }, t("event.threshold")), slider, shown), changes, h("div", { class: "actions" }, apply, reset)),
    );
    load();
    return () => clearTimeout(timer);
  },
};

function summaryOf({ in_force: now, target_fmr: target }) {
  const percent = (value) => (value === null ? "–" : `${number(100 * value, value < 0.01 ? 3 : 1)} %`);
  return facts([
    [t("event.threshold"), now.value === null ? "–" : number(now.value, 3)],
    [t("event.rule"), known("rule", now.rule)],
    [t("thresholds.pairs"), number(now.pairs)],
    [t("health.known"), number(now.identities)],
    [t("event.chance"), percent(now.search_rate)],
    [t("thresholds.target"), percent(target)],
  ]);
}

/** One row of bars for each kind of score, over the same axis, and the threshold across all. */
function histogram(found, threshold) {
  const count = Math.round(1 / STEP);
  const x = (value) => LEFT + Math.max(0, Math.min(1, value)) * (WIDTH - 2 * LEFT);
  const rows = SERIES.map((name, at) => {
    const bins = Array(count).fill(0);
    for (const value of found[name]) bins[Math.max(0, Math.min(count - 1, Math.floor(value / STEP)))] += 1;
    const most = Math.max(1, ...bins);
    const floor = (at + 1) * ROW - 6;
    return [
      svg("text", { x: LEFT, y: at * ROW + 14, class: "axis" }, `${t(`thresholds.series.${name}`)}: ${number(found[name].length)}`),
      svg("line", { x1: LEFT, x2: WIDTH - LEFT, y1: floor, y2: floor, class: "grid" }),
      bins.map((value, bin) => value > 0 && svg("rect", { x: x(bin * STEP) + 0.5, y: floor - (value / most) * (ROW - 26), width: x(STEP) - x(0) - 1, height: (value / most) * (ROW - 26), class: `bar-${name}` })),
    ];
  });
  const height = SERIES.length * ROW + 16;
  const ticks = [0, 0.2, 0.4, 0.6, 0.8, 1].map((value) => svg("text", { x: x(value), y: height - 2, "text-anchor": value === 0 ? "start" : value === 1 ? "end" : "middle", class: "axis" }, number(value, 1)));
  const label = SERIES.map((name) => `${t(`thresholds.series.${name}`)}: ${number(found[name].length)}`).join("; ");
  const line = (value, kind) => value !== null && svg("line", { x1: x(value), x2: x(value), y1: 2, y2: height - 14, class: kind });
  return svg("svg", { viewBox: `0 0 ${WIDTH} ${height}`, class: "histogram", role: "img", "aria-label": label }, rows, ticks, line(found.in_force.value, "in-force"), line(threshold, "tried"));
}

function effectOf(effect) {
  if (!effect.tracks) return h("p", { class: "muted" }, t("thresholds.no_tracks"));
  const values = { count: effect.tracks, before: effect.matched_before, after: effect.matched_after, since: moment(effect.since) };
  const head = h("p", {}, h("strong", {}, t("thresholds.effect", values)), " ", effect.changed ? t("thresholds.changed", { count: effect.changed }) : t("thresholds.same"));
  if (!effect.changed) return head;
  const titles = [t("thresholds.when"), t("events.camera"), t("health.found"), t("event.score")];
  const rows = effect.flips.map((one) => [moment(one.time), one.camera, t(`thresholds.flip.${one.change}`, { who: who(null, one.number) }), number(one.score, 3)]);
  return [head, table(titles, rows)];
}
