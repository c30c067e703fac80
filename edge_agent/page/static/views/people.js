// People: who is known, and pairs that are probably one person. `#/people/ID` shows one of them.

import { get, post } from "../api.js";
import { fill, h } from "../dom.js";
import { exactly, moment, number, who } from "../format.js";
import { attempt, likeness, mergeDialog, portrait, sideBySide } from "../people.js";
import { t } from "../texts.js";
import { mountPerson } from "./person.js";

const SEARCH_MS = 250;

export default {
  id: "people",
  icon: "people",
  mount(root, app, [chosen]) {
    return chosen ? mountPerson(root, app, chosen) : mountAll(root, app);
  },
};

function mountAll(root, app) {
  const suggested = makeSuggestions(app, () => load(true));
  const grid = h("ul", { class: "people" });
  const note = h("p", { class: "muted", role: "status" });
  const more = h("button", { hidden: true, onclick: () => load(false) }, t("people.more"));
  let timer = 0;
  let turn = 0;
  let shown = 0;
  const later = () => {
    clearTimeout(timer);
    timer = setTimeout(() => load(true), SEARCH_MS);
  };
  const text = h("input", { type: "search", placeholder: t("people.search"), "aria-label": t("people.search"), maxLength: 100, oninput: later });
  const order = h("select", { "aria-label": t("people.order"), onchange: () => load(true) }, ["seen", "new", "name"].map((one) => h("option", { value: one }, t(`people.order.${one}`))));
  root.append(suggested.element, h("form", { class: "filters", role: "search", onsubmit: (event) => event.preventDefault() }, text, order), note, grid, more);

  const load = async (anew) => {
    const own = (turn += 1);
    let found;
    try {
      found = await get("/api/people", { text: text.value, order: order.value, offset: anew ? 0 : shown });
    } catch (problem) {
      return fill(note, problem.shown);
    }
    if (own !== turn) return;
    if (anew) {
      fill(grid);
      shown = 0;
    }
    shown += found.people.length;
    grid.append(...found.people.map(card));
    more.hidden = shown >= found.count;
    const parts = [text.value.trim() ? t("people.found", { count: found.count }) : t("people.known", { count: found.count })];
    if (!found.keep_crops) parts.push(t("people.no_crops"));
    fill(note, parts.join(" "));
  };
  const ends = [app.socket.on("event", ({ event }) => event.type.endsWith(".person") && later()), app.socket.on("forgotten", later), app.socket.on("reload", later)];
  load(true);
  suggested.load();
  return () => {
    clearTimeout(timer);
    ends.forEach((end) => end());
  };
}

function card(person) {
  return h(
    "li",
    { dataset: { person: person.id } },
    h(
      "a",
      { href: `#/people/${encodeURIComponent(person.id)}` },
      portrait(person),
      h("span", { class: person.name ? "name" : "name unnamed" }, who(person.name, person.number)),
      h("small", { class: "muted", title: exactly(person.last_seen) }, t("people.seen", { time: moment(person.last_seen) })),
      h("small", { class: "muted" }, t("people.sightings", { count: person.sightings })),
    ),
  );
}

function makeSuggestions(app, changed) {
  const list = h("ol", { class: "suggestions" });
  const element = h("section", { class: "card", hidden: true }, h("h2", {}, t("suggestions.title")), h("p", { class: "muted" }, t("suggestions.about")), list);
  const decided = (item) => {
    item.remove();
    element.hidden = !list.children.length;
    changed();
  };
  const entry = ({ one, other, score }, threshold) => {
    const accept = () => attempt(app, () => mergeDialog(app, one.id, other.id)).then((done) => done && load());
    const reject = () => attempt(app, () => post(`/api/people/${encodeURIComponent(one.id)}/reject`, { other_id: other.id }), t("suggestions.rejected")).then((done) => done && decided(item));
    const buttons = app.mayChange && h("div", { class: "actions" }, h("button", { class: "primary", onclick: accept }, t("suggestions.same")), h("button", { onclick: reject }, t("suggestions.different")));
    const item = h("li", { dataset: { pair: `${one.id}|${other.id}` } }, sideBySide(one, other), likeness(score, threshold), buttons);
    return item;
  };
  const load = async () => {
    const found = await get("/api/suggestions").catch(() => ({ pairs: [] }));
    fill(list, found.pairs.slice(0, 6).map((pair) => entry(pair, found.threshold)));
    element.hidden = !found.pairs.length;
  };
  return { element, load };
}
