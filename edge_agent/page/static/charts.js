// Charts as SVG.

import { h, svg } from "./dom.js";
import { clock, number } from "./format.js";
import { t } from "./texts.js";

const WIDTH = 320;
const HEIGHT = 96;
const LEFT = 34;
const BOTTOM = 16;

/** A chart of values over time. `times`: Unix seconds; `values` may have null; `limit`: a line to stay below. */
export function lineChart({ title, times, values, unit = "", digits = 0, limit = null, least = 0 }) {
  const given = values.filter((value) => value !== null && value !== undefined);
  const now = values.length ? values[values.length - 1] : null;
  const shown = (value) => (value === null ? "–" : `${number(value, digits)} ${unit}`.trim());
  const head = h("figcaption", {}, h("span", {}, title), h("strong", {}, shown(now)));
  if (given.length < 2) return h("figure", { class: "chart" }, head, h("p", { class: "muted" }, t("health.no_data")));
  let low = Math.min(least ?? Infinity, ...given);
  let high = Math.max(...given, limit ?? -Infinity);
  if (high - low < 1e-9) high = low + 1;
  const [first, last] = [times[0], times[times.length - 1]];
  const x = (time) => LEFT + ((time - first) / Math.max(1, last - first)) * (WIDTH - LEFT - 4);
  const y = (value) => 4 + (1 - (value - low) / (high - low)) * (HEIGHT - BOTTOM - 8);
  const parts = [];
  let open = false;
  values.forEach((value, at) => {
    if (value === null || value === undefined) open = false;
    else {
      parts.push(`${open ? "L" : "M"}${x(times[at]).toFixed(1)} ${y(value).toFixed(1)}`);
      open = true;
    }
  });
  const label = `${title}: ${t("health.now", { value: shown(now) })}, ${number(Math.min(...given), digits)}–${number(Math.max(...given), digits)} ${unit}`;
  const text = (value, at) => svg("text", { x: LEFT - 5, y: at, "text-anchor": "end", class: "axis" }, number(value, high - low < 5 ? 1 : 0));
  return h(
    "figure",
    { class: "chart" },
    head,
    svg(
      "svg",
      { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label },
      svg("line", { x1: LEFT, x2: WIDTH - 4, y1: y(low), y2: y(low), class: "grid" }),
      svg("line", { x1: LEFT, x2: WIDTH - 4, y1: y(high), y2: y(high), class: "grid" }),
      text(high, y(high) + 4),
      text(low, y(low) + 1),
      limit !== null && svg("line", { x1: LEFT, x2: WIDTH - 4, y1: y(limit), y2: y(limit), class: "limit" }),
      svg("path", { d: parts.join(""), class: "line" }),
      svg("text", { x: LEFT, y: HEIGHT - 3, class: "axis" }, clock(first)),
      svg("text", { x: WIDTH - 4, y: HEIGHT - 3, "text-anchor": "end", class: "axis" }, clock(last)),
    ),
  );
}
