// One person: pictures, name, where and when seen, and every correction.

import { get, post } from "../api.js";
import { fill, h, icon, svg } from "../dom.js";
import { clock, exactly, moment, number, who } from "../format.js";
import { attempt, crop, mention, mergeDialog, personSearch, portrait } from "../people.js";
import { t } from "../texts.js";
import { facts } from "./event_details.js";

const REFRESH_MS = 400;

/** Show the person of an id; returns what ends it. */
export function mountPerson(root, app, id) {
  const body = h("div", { class: "person" }, h("p", { class: "muted" }, t("app.loading")));
  root.append(h("p", {}, h("a", { class: "quiet button", href: "#/people" }, icon("back", 18), t("person.back"))), body);
  const path = `/api/people/${encodeURIComponent(id)}`;
  let timer = 0;
  const load = async () => {
    try {
      const [found, seen] = await Promise.all([get(path), get("/api/events", { person: id, kind: "identity" })]);
      show(found, seen.events);
    } catch (problem) {
      fill(body, h("p", { class: "problem" }, problem.shown));
    }
  };
  const later = () => {
    clearTimeout(timer);
    timer = setTimeout(load, REFRESH_MS);
  };
  const change = (verb, values, done) => attempt(app, () => post(`${path}/${verb}`, values), done).then((ok) => ok && load());
  const show = (found, events) => {
    if (body.contains(document.activeElement) && document.activeElement.matches("input, select")) return; // a person is typing
    const { person } = found;
    fill(
      body,
      h("section", { class: "card summary" }, portrait(person), h("div", { class: "about" }, h("h2", {}, who(person.name, person.number)), h("span", { class: `badge ${person.kind}` }, t(`person.kind.${person.kind}`)), factsOf(person), app.mayChange && nameForm(person, change))),
      pictures(found),
      timeLine(found, events),
      contributions(found, app, change),
      app.mayChange && corrections(found, app, change, load),
    );
  };
  const ends = ["event", "forgotten", "reload"].map((kind) => app.socket.on(kind, ({ event }) => (!event || event.data.identity_id === id) && later()));
  load();
  return () => {
    clearTimeout(timer);
    ends.forEach((end) => end());
  };
}

function factsOf(person) {
  return facts([
    [t("person.last_seen"), h("span", { title: exactly(person.last_seen) }, moment(person.last_seen))],
    [t("person.first_seen"), h("span", { title: exactly(person.created) }, moment(person.created))],
    [t("person.sightings"), number(person.sightings)],
    [t("person.exemplars"), number(person.exemplars)],
    [t("person.expires"), person.expires === null ? t("person.never") : moment(person.expires)],
    [t("event.identity"), person.id],
  ]);
}

function nameForm(person, change) {
  const input = h("input", { value: person.name || "", maxLength: 200, autocomplete: "off", "aria-label": t("person.name"), placeholder: t("person.name") });
  const submit = (event) => {
    event.preventDefault();
    const name = input.value.trim();
    input.blur();
    change("name", { name: name || null }, name ? t("person.named", { name }) : t("person.name_removed"));
  };
  return h("form", { class: "inline", onsubmit: submit }, input, h("button", { class: "primary", type: "submit" }, t("person.save_name")));
}

function pictures({ crops, keep_crops: kept }) {
  if (!kept) return h("section", { class: "card" }, h("h2", {}, t("person.pictures")), h("p", { class: "muted" }, t("person.pictures_off")));
  const shown = crops.map((one) => h("figure", {}, crop(one.row, `${one.camera}, ${moment(one.time)}`), h("figcaption", { title: exactly(one.time) }, one.camera || t("person.given"), h("br", {}), moment(one.time))));
  return h("section", { class: "card" }, h("h2", {}, t("person.pictures")), shown.length ? h("div", { class: "strip" }, shown) : h("p", { class: "muted" }, t("person.no_pictures")));
}

/** When the person was at which camera: from what is stored of tracks, and from the latest events. */
function timeLine({ contributions: stored }, events) {
  const spans = stored.filter((one) => one.camera).map((one) => ({ camera: one.camera, first: one.first, last: one.last }));
  for (const { data } of events) spans.push({ camera: data.camera, first: Date.parse(data.first_seen) / 1000, last: Date.parse(data.last_seen) / 1000 });
  if (!spans.length) return null;
  const cameras = [...new Set(spans.map((one) => one.camera))].sort();
  const first = Math.min(...spans.map((one) => one.first));
  const last = Math.max(...spans.map((one) => one.last));
  const [width, left, row] = [640, 130, 26];
  const x = (time) => left + ((time - first) / Math.max(1, last - first)) * (width - left - 8);
  const height = cameras.length * row + 22;
  const label = t("person.time_line_label", { cameras: cameras.join(", "), from: moment(first), to: moment(last) });
  const lines = cameras.map((camera, at) => [
    svg("text", { x: 0, y: at * row + 17, class: "axis" }, camera.length > 19 ? `${camera.slice(0, 18)}…` : camera),
    svg("line", { x1: left, x2: width - 8, y1: at * row + 13, y2: at * row + 13, class: "grid" }),
  ]);
  const bars = spans.map((one) => svg("rect", { x: x(one.first), y: cameras.indexOf(one.camera) * row + 6, width: Math.max(5, x(one.last) - x(one.first)), height: 14, rx: 4, class: "span" }, svg("title", {}, `${one.camera}: ${moment(one.first)} – ${moment(one.last)}`)));
  const ends = [svg("text", { x: left, y: height - 4, class: "axis" }, spanEnd(first, last, first)), svg("text", { x: width - 8, y: height - 4, "text-anchor": "end", class: "axis" }, spanEnd(first, last, last))];
  return h("section", { class: "card" }, h("h2", {}, t("person.time_line")), h("div", { class: "scroll", tabIndex: 0, role: "group", "aria-label": t("person.time_line") }, svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "time-line", role: "img", "aria-label": label }, lines, bars, ends)));
}

function spanEnd(first, last, time) {
  if (last - first < 600) return moment(time);
  return last - first < 43200 && new Date(first * 1000).toDateString() === new Date(last * 1000).toDateString() ? clock(time) : moment(time);
}

function contributions({ contributions: found, crops, person }, app, change) {
  const split = async (one) => {
    const body = [h("p", {}, t("split.about", { camera: one.camera || t("person.given"), time: moment(one.last) })), cropsOf(one)];
    if (await app.ask(t("split.title"), body, t("split.do"))) change("split", { origin: one.origin }, t("split.done"));
  };
  const cropsOf = (one) => h("div", { class: "strip small" }, crops.filter((each) => each.origin === one.origin).map((each) => crop(each.row)));
  const rows = found.map((one) =>
    h(
      "li",
      { dataset: { origin: one.origin } },
      cropsOf(one),
      h("div", {}, h("strong", {}, one.camera || t("person.given")), h("br", {}), h("small", { class: "muted" }, `${moment(one.first)} – ${moment(one.last)}, ${t("person.embeddings", { count: one.exemplars })}`)),
      app.mayChange && found.length > 1 && h("button", { onclick: () => split(one) }, t("split.open")),
    ),
  );
  return h("section", { class: "card" }, h("h2", {}, t("person.contributions")), h("p", { class: "muted" }, t("person.contributions_about")), rows.length ? h("ul", { class: "contributions" }, rows) : h("p", { class: "muted" }, t("person.no_contributions", { who: who(person.name, person.number) })));
}

function corrections({ person, apart }, app, change, load) {
  const merge = (other) =>
    attempt(app, () => mergeDialog(app, person.id, other.id)).then((done) => {
      if (done) other.name && !person.name ? (location.hash = `#/people/${encodeURIComponent(other.id)}`) : load();
    });
  const keep = h("select", { "aria-label": t("keep.title") }, ["as-others", "hours:24", "hours:168", "hours:720", "forever"].map((one) => h("option", { value: one }, t(`keep.${one}`))));
  keep.value = person.ttl_s === null ? "as-others" : person.ttl_s === 0 ? "forever" : `hours:${person.ttl_s / 3600}`;
  if (keep.selectedIndex < 0) {
    keep.prepend(h("option", { value: "" }, t("keep.own", { hours: number(person.ttl_s / 3600, 1) })));
    keep.value = "";
  }
  keep.onchange = () => {
    const [rule, hours] = keep.value.split(":");
    keep.blur();
    if (rule) change("keep", hours ? { keep: rule, hours: Number(hours) } : { keep: rule }, t("keep.done"));
  };
  const forget = async () => {
    const name = who(person.name, person.number);
    if (!(await app.ask(t("forget.title", { who: name }), [h("p", {}, t("forget.about"))], t("forget.do"), { danger: true }))) return;
    if (await attempt(app, () => post(`/api/people/${encodeURIComponent(person.id)}/forget`), t("forget.done", { who: name }))) location.hash = "#/people";
  };
  return h(
    "section",
    { class: "card" },
    h("h2", {}, t("person.corrections")),
    h("h3", {}, t("merge.with")),
    personSearch(t("people.search"), merge, person.id),
    apart.length > 0 && h("div", {}, h("h3", {}, t("person.apart")), h("div", { class: "mentions" }, apart.map(mention))),
    h("h3", {}, t("keep.title")),
    keep,
    h("button", { class: "danger", onclick: forget }, t("forget.open")),
  );
}
