// What an event was decided by.

import { h } from "../dom.js";
import { exactly, number } from "../format.js";
import { known, t } from "../texts.js";

/** Fill `body` with the details of an event. */
export function details(body, event, _app) {
  const data = event.data;
  const rows = event.type.split(".")[1] === "identity" ? identityRows(data) : Object.entries(data.details || {});
  rows.push([t("event.id"), event.id]);
  body.append(facts(rows));
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
