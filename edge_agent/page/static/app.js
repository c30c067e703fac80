// The shell: login, navigation, messages, and the view that the address names.

import { get, post, useSession } from "./api.js";
import { fill, h, icon } from "./dom.js";
import { zone } from "./format.js";
import { Socket } from "./socket.js";
import { t } from "./texts.js";
import { VIEWS } from "./views/index.js";

const root = document.getElementById("app");
let socket = null;
let leave = () => {};

setTheme(localStorage.getItem("theme"));
start();

async function start() {
  const link = takeLink();
  if (link) {
    try {
      return open(await post("/api/login/link", { token: link }));
    } catch (problem) {
      return logIn(problem.shown);
    }
  }
  try {
    open(await get("/api/session"));
  } catch (problem) {
    logIn(problem.status === 401 ? "" : problem.shown);
  }
}

/** Take the token of a link from the address, which must not stay in the history. */
function takeLink() {
  const found = /^#link=([\w-]+)$/.exec(location.hash);
  if (!found) return null;
  history.replaceState(null, "", location.pathname);
  return found[1];
}

function shut() {
  leave();
  leave = () => {};
  closeDialogs();
  if (socket) socket.close();
  socket = null;
  window.onhashchange = null;
}

/** A dialog belongs to the view that opened it: left open, it would act on what is not seen any more. */
function closeDialogs() {
  for (const dialog of document.querySelectorAll("dialog[open]")) dialog.close("no");
}

/** A part of the address as text; an address that is malformed is taken as it is. */
function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

// --- login ------------------------------------------------------------------------------------------------

async function logIn(message) {
  shut();
  document.title = t("login.title");
  const facts = await get("/api/start").catch(() => ({ users: true, service: false }));
  const problem = h("p", { class: "problem", role: "alert" }, message);
  const user = h("input", { id: "user", name: "user", autocomplete: "username", autocapitalize: "none", spellcheck: false, required: true, maxLength: 100 });
  const password = h("input", { id: "password", name: "password", type: "password", autocomplete: "current-password", required: true, maxLength: 200 });
  const button = h("button", { class: "primary", type: "submit" }, t("login.submit"));
  const submit = async (event) => {
    event.preventDefault();
    button.disabled = true;
    try {
      open(await post("/api/login", { user: user.value, password: password.value }));
    } catch (failure) {
      fill(problem, failure.shown);
      password.value = "";
      password.focus();
    } finally {
      button.disabled = false;
    }
  };
  const sudo = facts.service ? "sudo " : "";
  const form = h("form", { onsubmit: submit }, h("label", { htmlFor: "user" }, t("login.user")), user, h("label", { htmlFor: "password" }, t("login.password")), password, button);
  const help = facts.users
    ? [h("p", {}, t("login.help")), h("code", {}, `${sudo}edge-agent page link`)]
    : [h("p", {}, t("login.no_users")), h("code", {}, `${sudo}edge-agent page link`), h("p", {}, t("login.or_password")), h("code", {}, `${sudo}edge-agent page password NAME`)];
  fill(root, h("main", { class: "login" }, h("div", { class: "card" }, h("img", { src: "/icon.svg", alt: "", width: 48, height: 48 }), h("h1", {}, t("app.name")), problem, form, h("div", { class: "help" }, help))));
  user.focus();
}

// --- the page ---------------------------------------------------------------------------------------------

function open(session) {
  shut();
  useSession(session.csrf, () => logIn(t("login.over")));
  const banner = h("div", { class: "banners", role: "status" });
  const main = h("main", { id: "main", tabIndex: -1 });
  const states = { connected: true, online: session.online };
  const showState = () =>
    fill(
      banner,
      !states.connected && h("p", { class: "banner" }, t("app.no_connection")),
      states.connected && !states.online && h("p", { class: "banner" }, t("app.agent_away")),
      session.info.simulated && h("p", { class: "banner info" }, t("app.simulated")),
    );
  socket = new Socket(
    () => logIn(t("login.over")),
    (connected) => {
      states.connected = connected;
      showState();
    },
    () => get("/api/session").catch(() => {}), // logs in again where the session is over
  );
  socket.on("agent", ({ online }) => {
    states.online = online;
    showState();
  });
  showState();
  const views = VIEWS.filter((view) => view.role !== "operator" || session.role === "operator");
  const links = views.map((view) => h("a", { href: `#/${view.id}`, class: "nav" }, icon(view.icon), h("span", {}, t(`view.${view.id}`))));
  const out = async () => {
    await post("/api/logout").catch(() => {});
    logIn("");
  };
  fill(
    root,
    h("a", { class: "skip", href: "#main", onclick: (event) => { event.preventDefault(); main.focus(); } }, t("app.skip")),
    h(
      "header",
      { class: "side" },
      h("div", { class: "brand" }, h("img", { src: "/icon.svg", alt: "", width: 28, height: 28 }), h("span", {}, t("app.name"))),
      h("nav", { "aria-label": t("app.views") }, links),
      h(
        "div",
        { class: "account" },
        h("p", { class: "who" }, session.linked ? t("app.linked") : session.user, h("small", {}, t(`app.role.${session.role}`)), h("small", {}, t("app.times", { zone }))),
        h("div", { class: "buttons" }, h("button", { class: "quiet", title: t("app.theme"), "aria-label": t("app.theme"), onclick: switchTheme }, icon("theme")), h("button", { class: "quiet", title: t("app.log_out"), "aria-label": t("app.log_out"), onclick: out }, icon("out"))),
      ),
    ),
    h("div", { class: "content" }, banner, main),
  );
  const app = { session, socket, toast, ask, mayChange: session.role === "operator" };
  const show = () => {
    const [id, ...rest] = location.hash.replace(/^#\//, "").split("/");
    const view = views.find((one) => one.id === id) || views[0];
    leave();
    leave = () => {};
    closeDialogs();
    views.forEach((one, at) => (one === view ? links[at].setAttribute("aria-current", "page") : links[at].removeAttribute("aria-current")));
    document.title = `${t(`view.${view.id}`)} · ${t("app.name")}`;
    fill(main, h("h1", { class: "title" }, t(`view.${view.id}`)));
    leave = view.mount(main, app, rest.map(decoded)) || (() => {});
    window.scrollTo(0, 0);
  };
  window.onhashchange = () => {
    show();
    if (document.activeElement === document.body) main.focus(); // what had the focus is gone
  };
  show();
}

// --- messages ---------------------------------------------------------------------------------------------

/** Show a short message; an error stays longer. */
export function toast(text, kind = "ok") {
  const shown = h("p", { class: `toast ${kind}` }, text);
  document.getElementById("toasts").append(shown);
  setTimeout(() => shown.remove(), kind === "ok" ? 4000 : 9000);
}

/** Ask for confirmation in a dialog; resolves to true or false. `body`: nodes or texts. */
export function ask(title, body, action, { danger = false } = {}) {
  return new Promise((resolve) => {
    const dialog = h(
      "dialog",
      { "aria-labelledby": "dialog-title" },
      h("h2", { id: "dialog-title" }, title),
      h("div", { class: "body" }, body),
      h("div", { class: "actions" }, h("button", { value: "no", onclick: () => dialog.close("no") }, t("app.cancel")), h("button", { class: danger ? "danger" : "primary", onclick: () => dialog.close("yes") }, action)),
    );
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes");
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

// --- light and dark ---------------------------------------------------------------------------------------

function setTheme(theme) {
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
}

function switchTheme() {
  const dark = (document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  setTheme(dark ? "light" : "dark");
  localStorage.setItem("theme", dark ? "light" : "dark");
}
