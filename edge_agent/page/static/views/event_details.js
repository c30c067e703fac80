// What an event was decided by: in words, with the pictures compared where they are kept, and as numbers.

import { get, post } from "../api.js";
import { fill, h } from "../dom.js";
import { exactly, number, who } from "../format.js";
import { attempt, crop, mention, portrait } from "../people.js";
import { known, t } from "../texts.js";

/** Fill `body` with the details of an event. */
export function details(body, event, app) {
  const data = event.data;
  const decided = event.type.split(".")[1] === "identity";
  const rows = decided ? identityRows(data) : Object.entries(data.details || {});
  rows.push([t("event.id"), event.id]);
  if (!decided) return body.append(facts(rows));
  const evidence = h("div", { class: "evidence" });
  body.append(h("p", { class: "why" }, inWords(event)), evidence, facts(rows));
  get(`/api/events/${encodeURIComponent(event.id)}/evidence`)
    .then((found) => showEvidence(evidence, event, found, app))
    .catch((problem) => fill(evidence, h("p", { class: "muted" }, problem.shown)));
}

/** Why it was decided so, in sentences. */
function inWords({ data, now }) {
  const name = who(now ?? data.name, data.number);
  const values = { who: name, count: Math.round(data.evidence), identities: data.identities, score: number(data.score, 2), threshold: number(data.threshold, 2), runner_up: number(data.runner_up, 2) };
  const parts = [];
  if (data.score === null) parts.push(t("why.not_compared"));
  else if (data.threshold === null) parts.push(t("why.no_threshold", values));
  else parts.push(t(data.score >= data.threshold ? "why.above" : "why.below", values));
  if (data.runner_up !== null && data.score !== null) parts.push(t("why.runner_up", values));
  if (data.threshold !== null) parts.push(t("why.rule", { rule: known("rule", data.rule) }));
  return [t(`why.${data.kind}`, values), ...parts].join(" ");
}

/** The pictures of the track beside those of the person, and what can be corrected here. */
function showEvidence(element, event, found, app) {
  const { data } = event;
  const column = (title, pictures) => h("div", {}, h("h3", {}, title), h("div", { class: "strip small" }, pictures));
  const track = found.track.map((one) => crop(one.row, exactly(one.time)));
  const person = found.person;
  const split = async () => {
    const question = [h("p", {}, t("split.event", { who: who(person.name, person.number) })), h("div", { class: "strip small" }, found.track.map((one) => crop(one.row)))];
    if (!(await app.ask(t("split.title"), question, t("split.do")))) return;
    await attempt(app, () => post(`/api/people/${encodeURIComponent(person.id)}/split`, { origin: found.origin }), t("split.done"));
  };
  fill(
    element,
    found.keep_crops
      ? h("div", { class: "columns" }, column(t("evidence.track"), track.length ? track : h("p", { class: "muted" }, t("evidence.none"))), person && column(t("evidence.person", { who: who(person.name, person.number) }), person.crops.length ? person.crops.slice(0, 6).map((row) => crop(row)) : portrait(person)))
      : h("p", { class: "muted" }, t("evidence.off")),
    person ? h("div", { class: "actions" }, mention(person), app.mayChange && data.identity_id && h("button", { onclick: split }, t("split.open"))) : data.identity_id && h("p", { class: "muted" }, t("evidence.gone")),
  );
}

function identityRows(data) {
  const rate = data.search_rate ?? data.pair_rate;
  return [
    [t("event.score"), number(data.score, 3)],
    [t("event.runner_up"), number(data.runner_up, 3)],
    [t("event.threshold"), number(data.threshold, 3)],
    [t("event.rule"), known("rule", data.rule)],
    [t("event.chance"), rate === null || rate === undefined ? "–" : `${number(100 * rate, rate < 0.01 ? 2 : 1)} %`],
    [t("event.compared"), data.identities ? t("event.compared_with", { count: data.identities }) : "–"],
    [t("event.evidence"), number(data.evidence)],
    [t("event.quality"), `${number(100 * data.quality)} %`],
    [t("event.track"), data.track_id],
    [t("event.first_seen"), exactly(data.first_seen)],
    [t("event.last_seen"), exactly(data.last_seen)],
    [t("event.reason"), data.reason || "–"],
    [t("event.latency"), data.latency_ms?.total === undefined ? "–" : `${number(data.latency_ms.total)} ms`],
    [t("event.network"), `${data.model.name} (${data.model.backend}, ${data.model.precision})`],
    [t("event.identity"), data.identity_id ?? "–"],
  ];
}

/** A list of names and values. */
export function facts(rows) {
  return h("dl", { class: "facts" }, rows.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value ?? "–"))));
}
