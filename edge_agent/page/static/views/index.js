// The views, in the order of the navigation. Each has `id`, `icon`, and `mount(root, app, parts)`, which may
// return a function that is called when the view is left; `role: "operator"` hides it from viewers.

import enrol from "./enrol.js";
import events from "./events.js";
import health from "./health.js";
import live from "./live.js";
import people from "./people.js";
import thresholds from "./thresholds.js";

export const VIEWS = [live, events, people, enrol, thresholds, health];
