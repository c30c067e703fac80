// Numbers and times as texts, in the language of the page and the time zone of the viewer.

import { t } from "./texts.js";

const language = document.documentElement.lang || "en";
const day = new Intl.DateTimeFormat(language, { day: "numeric", month: "short" });
const clockFormat = new Intl.DateTimeFormat(language, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const shortClock = new Intl.DateTimeFormat(language, { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const whole = new Intl.DateTimeFormat(language, { dateStyle: "medium", timeStyle: "long" });

/** The viewer's time zone, e.g. Europe/Berlin. */
export const zone = Intl.DateTimeFormat().resolvedOptions().timeZone || "UTC";

function date(time) {
  return typeof time === "number" ? new Date(time * 1000) : new Date(time);
}

/** 14:03:59, with the day where it is another than today. `time`: RFC 3339 or Unix seconds. */
export function moment(time) {
  if (time === null || time === undefined) return "–";
  const at = date(time);
  const today = at.toDateString() === new Date().toDateString();
  return today ? clockFormat.format(at) : `${day.format(at)}, ${clockFormat.format(at)}`;
}

export function clock(time) {
  return shortClock.format(date(time));
}

/** With date and zone, for a tooltip. */
export function exactly(time) {
  return time ? whole.format(date(time)) : "";
}

/** 12 s, 5 min, 7 h, 3 d. */
export function span(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "–";
  for (const [unit, length] of [["d", 86400], ["h", 3600], ["min", 60]]) {
    if (seconds >= 2 * length) return `${Math.round(seconds / length)} ${unit}`;
  }
  return `${Math.round(seconds)} s`;
}

export function number(value, digits = 0) {
  if (value === null || value === undefined) return "–";
  return new Intl.NumberFormat(language, { maximumFractionDigits: digits, minimumFractionDigits: digits }).format(value);
}

export function bytes(value) {
  if (value === null || value === undefined) return "–";
  const units = ["B", "KB", "MB", "GB", "TB"];
  let at = 0;
  while (value >= 1000 && at < units.length - 1) {
    value /= 1000;
    at += 1;
  }
  return `${number(value, value < 10 && at > 0 ? 1 : 0)} ${units[at]}`;
}

/** How a person is called: the name, else "person 12", else "unknown". */
export function who(name, personNumber) {
  if (name) return name;
  return personNumber === null || personNumber === undefined ? t("person.unknown") : t("person.number", { number: personNumber });
}
