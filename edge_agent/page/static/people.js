// Parts that show people: pictures, or a drawing where none is kept, and the dialogs that change them.

import { get, post } from "./api.js";
import { fill, h, svg } from "./dom.js";
import { number, who } from "./format.js";
import { t } from "./texts.js";

const SEARCH_MS = 250;
const HUES = 360 / 1.618;

/** A kept picture. */
export function crop(row, alt = "") {
  return h("img", { class: "crop", src: `/api/crops/${row}`, alt, loading: "lazy", decoding: "async" });
}

/** The best picture of a person, or a drawing in a colour of its own. */
export function portrait(person) {
  const name = who(person.name, person.number);
  if (person.crops?.length) return crop(person.crops[0], name);
  const hue = Math.round((person.number * HUES) % 360);
  const figure = svg(
    "svg",
    { viewBox: "0 0 64 128", class: "crop drawn", role: "img", "aria-label": name },
    svg("rect", { width: 64, height: 128 }),
    svg("circle", { cx: 32, cy: 40, r: 13 }),
    svg("path", { d: "M12 104c0-26 8-42 20-42s20 16 20 42z" }),
  );
  figure.style.setProperty("--hue", hue);
  return figure;
}

/** A person in one line, as a link. */
export function mention(person) {
  return h("a", { class: "mention", href: `#/people/${encodeURIComponent(person.id)}` }, portrait(person), h("span", {}, who(person.name, person.number)));
}

/** How alike two people are, beside what a match needs. */
export function likeness(score, threshold) {
  if (score === null) return h("p", { class: "muted" }, t("pair.none"));
  const percent = (value) => `${Math.max(0, Math.min(100, value * 100))}%`;
  const known = threshold !== null && threshold !== undefined;
  return h(
    "div",
    { class: "likeness" },
    h("span", { class: "score", "aria-hidden": "true" }, h("span", { class: "bar" }, h("span", { class: "fill", style: { width: percent(score) } }), known && h("span", { class: "mark", style: { left: percent(threshold) } }))),
    h("p", {}, known ? t("pair.score", { score: number(score, 2), threshold: number(threshold, 2) }) : t("pair.score_only", { score: number(score, 2) })),
  );
}

/** Two people beside each other, with up to four pictures each. */
export function sideBySide(one, other) {
  const column = (person) =>
    h(
      "div",
      { class: "side-of-pair" },
      h("div", { class: "strip" }, person.crops?.length ? person.crops.slice(0, 4).map((row) => crop(row, who(person.name, person.number))) : portrait(person)),
      h("a", { href: `#/people/${encodeURIComponent(person.id)}` }, who(person.name, person.number)),
      h("small", { class: "muted" }, t("people.sightings", { count: person.sightings })),
    );
  return h("div", { class: "pair" }, column(one), column(other));
}

/** Merge two people after a look at both; resolves to true when it is done. The named or older one stays. */
export async function mergeDialog(app, id, otherId) {
  const found = await get(`/api/people/${encodeURIComponent(id)}/pair/${encodeURIComponent(otherId)}`);
  let [keep, absorbed] = [found.one, found.other];
  if (!keep.name && absorbed.name) [keep, absorbed] = [absorbed, keep];
  const names = keep.name && absorbed.name ? h("p", { class: "problem" }, t("merge.two_names", { keep: keep.name, lost: absorbed.name })) : null;
  const apart = found.apart ? h("p", { class: "problem" }, t("merge.apart")) : null;
  const body = [sideBySide(keep, absorbed), likeness(found.score, found.threshold), names, apart, h("p", { class: "muted" }, t("merge.about", { who: who(keep.name, keep.number) }))];
  if (!(await app.ask(t("merge.title"), body, t("merge.do")))) return false;
  await post(`/api/people/${encodeURIComponent(keep.id)}/merge`, { absorbed_id: absorbed.id });
  app.toast(t("merge.done", { who: who(keep.name, keep.number) }));
  return true;
}

/** A field that finds people; `choose(person)` gets the one that is picked. */
export function personSearch(label, choose, except = "") {
  const results = h("ul", { class: "results" });
  let timer = 0;
  let turn = 0;
  const search = async (text) => {
    const own = (turn += 1);
    if (!text.trim()) return fill(results);
    const found = await get("/api/people", { text, order: "name" }).catch(() => ({ people: [] }));
    if (own !== turn) return;
    const others = found.people.filter((one) => one.id !== except).slice(0, 8);
    fill(
      results,
      others.length ? others.map((one) => h("li", {}, h("button", { type: "button", onclick: () => choose(one) }, portrait(one), who(one.name, one.number)))) : h("li", { class: "muted" }, t("people.none_match")),
    );
  };
  const input = h("input", {
    type: "search",
    placeholder: label,
    "aria-label": label,
    maxLength: 100,
    oninput: ({ target }) => {
      clearTimeout(timer);
      timer = setTimeout(() => search(target.value), SEARCH_MS);
    },
  });
  return h("div", { class: "person-search" }, input, results);
}

/** Run a change; its failure is shown as a message. Resolves to whether it was done. */
export async function attempt(app, change, done = "") {
  try {
    if ((await change()) === false) return false;
    if (done) app.toast(done);
    return true;
  } catch (problem) {
    app.toast(problem.shown || String(problem), "error");
    return false;
  }
}
