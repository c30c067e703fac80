// Live: every camera with the boxes of the people in it. Pictures are asked for only while they are seen.

import { get } from "../api.js";
import { fill, h, icon } from "../dom.js";
import { moment, who } from "../format.js";
import { known, t } from "../texts.js";

const REFRESH_MS = 5000;
const STATES = ["matched", "undecided", "ambiguous"];

export default {
  id: "live",
  icon: "live",
  mount(root, app, [chosen]) {
    const grid = h("div", { class: "cameras" }, h("p", { class: "muted" }, t("app.loading")));
    const legend = h("p", { class: "legend", "aria-label": t("live.legend") }, STATES.map((state) => h("span", { class: `key ${state}` }, t(`live.state.${state}`))));
    root.append(legend, grid);
    const cards = new Map();
    const seen = new IntersectionObserver((entries) => entries.forEach((entry) => cards.get(entry.target.dataset.camera)?.setSeen(entry.isIntersecting)));

    const load = async () => {
      let found;
      try {
        found = await get("/api/live");
      } catch (problem) {
        if (!cards.size) fill(grid, h("p", { class: "problem" }, problem.shown));
        return;
      }
      const cameras = chosen ? found.cameras.filter((one) => one.camera === chosen) : found.cameras;
      const names = cameras.map((one) => one.camera).join();
      if (grid.dataset.names !== names) {
        grid.dataset.names = names;
        cards.forEach((card) => card.end());
        cards.clear();
        fill(grid, cameras.length === 0 && h("p", { class: "muted" }, t("live.none")));
        for (const one of cameras) {
          const card = makeCard(one, app, chosen === one.camera);
          cards.set(one.camera, card);
          grid.append(card.element);
          seen.observe(card.element);
        }
      }
      grid.classList.toggle("single", cameras.length === 1);
      cameras.forEach((one) => cards.get(one.camera).setState(one));
    };
    load();
    const timer = setInterval(load, REFRESH_MS);
    const visible = () => cards.forEach((card) => card.update());
    document.addEventListener("visibilitychange", visible);
    return () => {
      clearInterval(timer);
      document.removeEventListener("visibilitychange", visible);
      seen.disconnect();
      cards.forEach((card) => card.end());
    };
  },
};

function makeCard(camera, app, large) {
  const canvas = h("canvas", { role: "img", "aria-label": camera.camera });
  const state = h("span", { class: "state" });
  const waiting = h("p", { class: "waiting" }, t("live.waiting"));
  const people = h("ul", { class: "chips", "aria-label": t("health.present") });
  const time = h("span", { class: "stamp" });
  const target = large ? "#/live" : `#/live/${encodeURIComponent(camera.camera)}`;
  const label = large ? t("live.reduce") : t("live.enlarge", { camera: camera.camera });
  const element = h(
    "section",
    { class: "camera card", dataset: { camera: camera.camera }, "aria-label": camera.camera },
    h("div", { class: "head" }, h("h2", {}, camera.name || camera.camera), state, time, h("a", { class: "quiet button", href: target, title: label, "aria-label": label }, icon(large ? "close" : "expand", 18))),
    h("div", { class: "picture" }, canvas, waiting),
    people,
  );
  let isSeen = false;
  let unwatch = null;

  const show = async (values, jpeg) => {
    if (document.hidden || !unwatch) return;
    const picture = jpeg ? await createImageBitmap(jpeg) : null;
    draw(canvas, picture, values);
    if (picture) picture.close();
    waiting.hidden = true;
    time.textContent = moment(values.time);
    canvas.setAttribute("aria-label", t("live.picture", { camera: camera.camera, count: values.boxes.length }));
    element.dataset.frame = values.frame;
    fill(people, values.boxes.length ? values.boxes.map(chip) : h("li", { class: "muted" }, t("live.nobody")));
  };
  const update = () => {
    const wanted = isSeen && !document.hidden;
    if (wanted && !unwatch) unwatch = app.socket.watch(camera.camera, show);
    if (!wanted && unwatch) {
      unwatch();
      unwatch = null;
    }
  };
  return {
    element,
    update,
    setSeen(value) {
      isSeen = value;
      update();
    },
    setState(one) {
      state.className = `state badge ${one.state}`;
      state.textContent = known("source", one.state);
      state.title = one.reason || "";
    },
    end() {
      isSeen = false;
      update();
    },
  };
}

function chip(box) {
  const label = box.identity ? who(box.name, box.number) : t("live.track", { track: box.track });
  const score = box.score === null ? "" : ` ${box.score.toFixed(2)}`;
  return h("li", { class: `chip ${box.state}`, title: t(`live.state.${box.state}`) }, label, score && h("small", {}, score));
}

/** Draw a picture with its boxes, in the size in which it is shown. */
export function draw(canvas, picture, { boxes, size }) {
  const [width, height] = picture ? [picture.width, picture.height] : size;
  canvas.style.aspectRatio = `${width} / ${height}`;
  const scale = window.devicePixelRatio || 1;
  const shown = Math.max(160, Math.round((canvas.clientWidth || width) * scale));
  canvas.width = shown;
  canvas.height = Math.round((shown * height) / width);
  const pen = canvas.getContext("2d");
  if (picture) pen.drawImage(picture, 0, 0, canvas.width, canvas.height);
  else {
    pen.fillStyle = "#1e293b";
    pen.fillRect(0, 0, canvas.width, canvas.height);
  }
  pen.font = `600 ${12 * scale}px system-ui, sans-serif`;
  pen.textBaseline = "middle";
  const placed = [];
  boxes.filter((one) => one.box).forEach((box) => drawFrame(pen, canvas, box, scale));
  boxes.filter((one) => one.box).forEach((box) => drawLabel(pen, canvas, box, scale, placed));
}

const COLOURS = { matched: ["#2dd4bf", "#042f2e"], ambiguous: ["#fbbf24", "#451a03"], undecided: ["#e2e8f0", "#0f172a"] };

function corners(canvas, box) {
  return box.box.map((part, at) => part * (at % 2 ? canvas.height : canvas.width));
}

function drawFrame(pen, canvas, box, scale) {
  const [x1, y1, x2, y2] = corners(canvas, box);
  pen.lineWidth = 2 * scale;
  pen.setLineDash(box.state === "matched" ? [] : box.state === "ambiguous" ? [8 * scale, 4 * scale] : [3 * scale, 3 * scale]);
  pen.strokeStyle = (COLOURS[box.state] || COLOURS.undecided)[0];
  pen.strokeRect(x1, y1, x2 - x1, y2 - y1);
  pen.setLineDash([]);
}

/** Draw a name above its box, or higher where another name is already. */
function drawLabel(pen, canvas, box, scale, placed) {
  const [x1, y1] = corners(canvas, box);
  const [colour, ink] = COLOURS[box.state] || COLOURS.undecided;
  const narrow = canvas.width / scale < 480;
  const score = box.score === null || narrow ? "" : `  ${box.score.toFixed(2)}`;
  const text = (box.identity ? who(box.name, box.number) : t("live.track", { track: box.track })).slice(0, 24) + score;
  const width = pen.measureText(text).width + 10 * scale;
  const height = 20 * scale;
  const x = Math.max(0, Math.min(x1 - scale, canvas.width - width));
  let y = Math.max(0, y1 - height);
  const hits = (other) => x < other.x + other.width && other.x < x + width && y < other.y + height && other.y < y + height;
  for (let other = placed.find(hits); other && y >= height; other = placed.find(hits)) y = other.y - height - scale;
  placed.push({ x, y, width });
  pen.fillStyle = colour;
  pen.fillRect(x, y, width, height);
  pen.fillStyle = ink;
  pen.fillText(text, x + 5 * scale, y + height / 2 + scale);
}
