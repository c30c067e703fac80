// Enrol: from a picture, or from a person in view of a camera.

import { get, post, upload } from "../api.js";
import { fill, h } from "../dom.js";
import { who } from "../format.js";
import { attempt } from "../people.js";
import { t } from "../texts.js";
import { draw } from "./live.js";

const LARGEST = 8 << 20;

export default {
  id: "enrol",
  icon: "enrol",
  role: "operator",
  mount(root, app, [camera]) {
    const live = fromView(app, camera);
    root.append(h("div", { class: "columns" }, fromPicture(app), live.element));
    return live.end;
  },
};

function nameField(id) {
  return [h("label", { htmlFor: id }, t("enrol.name")), h("input", { id, maxLength: 200, autocomplete: "off" })];
}

function done(found, note) {
  fill(note, t("enrol.done"), " ", h("a", { href: `#/people/${encodeURIComponent(found.identity_id)}` }, found.name || t("enrol.see")));
}

function fromPicture(app) {
  const note = h("p", { role: "status" });
  const preview = h("div", { class: "preview" });
  const [label, name] = nameField("enrol-name");
  const button = h("button", { class: "primary", type: "submit", disabled: true }, t("enrol.do"));
  let chosen = null;
  const choose = ({ target }) => {
    chosen = target.files[0] || null;
    if (chosen && chosen.size > LARGEST) {
      chosen = null;
      app.toast(t("enrol.too_large"), "error");
    }
    button.disabled = !chosen;
    const url = chosen && URL.createObjectURL(chosen);
    const image = chosen && h("img", { src: url, alt: t("enrol.preview"), onload: () => URL.revokeObjectURL(url), onerror: () => fill(preview) });
    fill(preview, image);
  };
  const file = h("input", { id: "enrol-file", type: "file", accept: "image/jpeg,image/png", onchange: choose });
  const submit = async (event) => {
    event.preventDefault();
    button.disabled = true;
    await attempt(app, async () => {
      done(await upload(`/api/enrol?name=${encodeURIComponent(name.value)}`, chosen), note);
      event.target.reset();
      chosen = null;
      fill(preview);
    });
    button.disabled = !chosen;
  };
  return h("section", { class: "card" }, h("h2", {}, t("enrol.picture")), h("p", { class: "muted" }, t("enrol.picture_about")), h("form", { class: "stack", onsubmit: submit }, h("label", { htmlFor: "enrol-file" }, t("enrol.file")), file, preview, label, name, button), note);
}

function fromView(app, asked) {
  const canvas = h("canvas", { role: "img", "aria-label": t("enrol.view") });
  const people = h("ul", { class: "chips choose" });
  const note = h("p", { role: "status" });
  const [label, name] = nameField("enrol-track-name");
  const button = h("button", { class: "primary", type: "submit", disabled: true }, t("enrol.do"));
  const select = h("select", { id: "enrol-camera", onchange: () => watch(select.value) });
  let unwatch = () => {};
  let track = null;
  const choose = (box) => {
    track = box.track;
    button.disabled = false;
    for (const one of people.querySelectorAll("button")) one.setAttribute("aria-pressed", one.dataset.track === String(track));
  };
  const show = async (values, jpeg) => {
    const picture = jpeg ? await createImageBitmap(jpeg) : null;
    draw(canvas, picture, values);
    if (picture) picture.close();
    const drawn = [...people.querySelectorAll("button")].map((one) => one.dataset.key).join();
    const wanted = values.boxes.map((box) => `${box.track}/${box.identity}/${box.name}`);
    if (drawn === wanted.join() && people.children.length) return; // the focus stays where it is
    fill(people, values.boxes.length ? values.boxes.map((box, at) => h("li", {}, h("button", { type: "button", class: `chip ${box.state}`, dataset: { track: box.track, key: wanted[at] }, "aria-pressed": String(box.track === track), onclick: () => choose(box) }, box.identity ? who(box.name, box.number) : t("live.track", { track: box.track })))) : h("li", { class: "muted" }, t("live.nobody")));
    if (!values.boxes.some((box) => box.track === track)) {
      track = null;
      button.disabled = true;
    }
  };
  const watch = (camera) => {
    unwatch();
    track = null;
    button.disabled = true;
    unwatch = camera ? app.socket.watch(camera, show) : () => {};
  };
  const submit = async (event) => {
    event.preventDefault();
    button.disabled = true; // not twice
    await attempt(app, async () => {
      done(await post("/api/enrol/track", { camera: select.value, track_id: track, name: name.value }), note);
      name.value = "";
    });
    button.disabled = track === null;
  };
  get("/api/live")
    .then(({ cameras }) => {
      select.append(...cameras.map((one) => h("option", { value: one.camera }, one.name || one.camera)));
      if (asked && cameras.some((one) => one.camera === asked)) select.value = asked;
      watch(select.value);
    })
    .catch((problem) => fill(note, problem.shown));
  const element = h("section", { class: "card" }, h("h2", {}, t("enrol.track")), h("p", { class: "muted" }, t("enrol.track_about")), h("form", { class: "stack", onsubmit: submit }, h("label", { htmlFor: "enrol-camera" }, t("events.camera")), select, h("div", { class: "picture" }, canvas), people, label, name, button), note);
  return { element, end: () => unwatch() };
}
