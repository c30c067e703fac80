// Elements without HTML text: every text becomes a text node, so names cannot become markup.

/** Make an element. `props`: `class`, `dataset`, properties, `on...` listeners; other names are attributes. */
export function h(tag, props, ...children) {
  const element = document.createElement(tag);
  apply(element, props || {});
  put(element, children);
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

/** Make an SVG element; all props are attributes. */
export function svg(tag, props, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(props || {})) {
    if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  put(element, children);
  return element;
}

function apply(element, props) {
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "class") element.className = value;
    else if (name === "dataset") Object.assign(element.dataset, value);
    else if (name === "style") Object.assign(element.style, value);
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && !name.startsWith("aria") && name !== "list" && name !== "form") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
}

function put(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : String(child));
  }
}

/** Replace what an element contains. */
export function fill(element, ...children) {
  element.replaceChildren();
  put(element, children);
  return element;
}

/** Icons: outlines of 24 x 24. */
const ICONS = {
  live: "M15 10l5-3v10l-5-3M4 6h9a2 2 0 0 1 2 2v8a2 2 0 0 1-2 2H4a1 1 0 0 1-1-1V7a1 1 0 0 1 1-1z",
  events: "M8 6h13M8 12h13M8 18h13M3.5 6h.01M3.5 12h.01M3.5 18h.01",
  health: "M3 12h4l3-8 4 16 3-8h4",
  people: "M16 20v-1.5a4 4 0 0 0-4-4H6a4 4 0 0 0-4 4V20M9 11a3.5 3.5 0 1 0 0-7 3.5 3.5 0 0 0 0 7M22 20v-1.5a4 4 0 0 0-3-3.9M16 4.2a3.5 3.5 0 0 1 0 6.6",
  enrol: "M15 20v-1.5a4 4 0 0 0-4-4H6a4 4 0 0 0-4 4V20M8.500 11a3.500 3.500 0 1 0 0-7 3.500 3.500 0 0 0 0 7M19 8v6M22 11h-6",
  thresholds: "M4 20V10M10 20V4M16 20v-7M21 20H3M21 13V7",
  out: "M9 21H5a2 2 0 0 1-2-2V5a2 2 0 0 1 2-2h4M16 17l5-5-5-5M21 12H9",
  close: "M6 6l12 12M18 6L6 18",
  expand: "M15 3h6v6M9 21H3v-6M21 3l-7 7M3 21l7-7",
  back: "M15 18l-6-6 6-6",
  theme: "M12 3a9 9 0 1 0 9 9 7 7 0 0 1-9-9z",
  camera_off: "M3 3l18 18M10 6h3a2 2 0 0 1 2 2v3M20 7v10l-3-2M14 18H4a1 1 0 0 1-1-1V8",
};

/** Make an icon, hidden from screen readers. */
export function icon(name, size = 20) {
  return svg(
    "svg",
    { width: size, height: size, viewBox: "0 0 24 24", fill: "none", stroke: "currentColor", "stroke-width": 1.8, "stroke-linecap": "round", "stroke-linejoin": "round", "aria-hidden": "true", class: "icon" },
    svg("path", { d: ICONS[name] || "" }),
  );
}
