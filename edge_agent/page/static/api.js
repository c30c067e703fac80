// Requests to the page's server. Every failure is an ApiError with a code of the texts.

import { hasText, t } from "./texts.js";

export class ApiError extends Error {
  constructor(status, code, text) {
    super(text);
    this.status = status;
    this.code = code;
  }

  /** What the user reads. */
  get shown() {
    const key = `error.${this.code}`;
    return hasText(key) ? t(key) : this.message || t("error.unknown");
  }
}

let csrf = "";
let onSessionOver = () => {};

/** Set what requests repeat, and what is called when the session is over. */
export function useSession(value, over) {
  csrf = value;
  onSessionOver = over;
}

export function get(path, query = {}) {
  const given = Object.entries(query).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  const tail = new URLSearchParams(given).toString();
  return send(tail ? `${path}?${tail}` : path, {});
}

/** Send JSON values. */
export function post(path, values = {}) {
  return send(path, { method: "POST", headers: { "content-type": "application/json", "x-csrf": csrf }, body: JSON.stringify(values) });
}

/** Send a file as the body. */
export function upload(path, file) {
  return send(path, { method: "POST", headers: { "content-type": "application/octet-stream", "x-csrf": csrf }, body: file });
}

async function send(path, options) {
  let response;
  try {
    response = await fetch(path, { ...options, credentials: "same-origin", redirect: "error" });
  } catch {
    throw new ApiError(0, "no-connection", "");
  }
  if (response.ok) return response.json();
  const found = await response.json().catch(() => ({}));
  const error = new ApiError(response.status, found.error?.code || "unknown", found.error?.text || "");
  error.retry = Number(response.headers.get("retry-after")) || null;
  if (error.code === "no-session") onSessionOver();
  throw error;
}
