// The WebSocket: pictures on request, and news. It connects again by itself.

const LONGEST_WAIT_MS = 10000;
const SESSION_OVER = 4401;

export class Socket {
  /**
   * `onOver` is called when the session is over, `onState` with true or false when the connection changes,
   * `onRefused` when it cannot be opened: a browser does not say why.
   */
  constructor(onOver, onState, onRefused) {
    this.listeners = new Map();
    this.pictures = new Map();
    this.onOver = onOver;
    this.onState = onState;
    this.onRefused = onRefused;
    this.before = false;
    this.wait = 500;
    this.closed = false;
    this.connect();
  }

  connect() {
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    const socket = (this.socket = new WebSocket(`${scheme}://${location.host}/ws`));
    socket.binaryType = "arraybuffer";
    let opened = false;
    socket.onopen = () => {
      opened = true;
      this.onState(true);
      if (this.before) this.news({ type: "reload" }); // news were missed
      this.before = true;
      for (const camera of this.pictures.keys()) this.ask(camera);
    };
    socket.onmessage = ({ data }) => {
      this.wait = 500; // not when it is opened: it may be closed at once, as there are too many viewers
      return typeof data === "string" ? this.news(JSON.parse(data)) : this.picture(data);
    };
    socket.onclose = ({ code }) => {
      if (this.closed) return;
      this.onState(false);
      if (code === SESSION_OVER) return this.onOver();
      if (!opened) this.onRefused();
      setTimeout(() => this.closed || this.connect(), this.wait);
      this.wait = Math.min(2 * this.wait, LONGEST_WAIT_MS);
    };
  }

  close() {
    this.closed = true;
    this.socket.close();
  }

  news(message) {
    for (const listener of this.listeners.get(message.type) || []) listener(message);
  }

  /** Call `listener` with messages of a type; returns a function that ends it. */
  on(type, listener) {
    if (!this.listeners.has(type)) this.listeners.set(type, new Set());
    this.listeners.get(type).add(listener);
    return () => this.listeners.get(type).delete(listener);
  }

  /** Get pictures of a camera: `show(values, blob)` is awaited before the next one is asked for. */
  watch(camera, show) {
    this.pictures.set(camera, show);
    this.ask(camera);
    return () => {
      if (this.pictures.get(camera) === show) this.pictures.delete(camera);
    };
  }

  ask(camera) {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify({ picture: camera }));
  }

  async picture(data) {
    const length = new DataView(data).getUint32(0);
    const values = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, length)));
    const jpeg = data.byteLength > 4 + length ? new Blob([new Uint8Array(data, 4 + length)], { type: "image/jpeg" }) : null;
    const show = this.pictures.get(values.camera);
    if (!show) return;
    try {
      await show(values, jpeg);
    } finally {
      if (this.pictures.has(values.camera)) this.ask(values.camera);
    }
  }
}
