// The page: reads the data, shows a device or the overview, and draws everything of the pinned moment.
"use strict";

(async () => {
  const report = await opened(readReport);
  const { devices, prediction } = report;
  const views = devices.map((device) => ({ device, moment: device.moment, module: null, measure: "holds" }));
  let view = views[0];
  let timeline = null;
  let curve = null;

  // -- what stays the same ------------------------------------------------------------------------------------------

  function drawFrame() {
    const what = prediction ? "Predicted GPU memory" : "GPU memory";
    const [first] = devices;
    const name = first.device.startsWith("cpu")
      ? "Memory of tensors on the CPU"
      : `${what} of ${first.name || first.device}`;
    const many = `${devices.length} ${report.tabs === "process" ? "processes" : `${report.tabs}s`}`;
    const title =
      report.tabs !== "device"
        ? `${what} of ${many}, ${first.name || first.device}`
        : devices.length > 1
          ? `${name} and ${devices.length - 1} more`
          : name;
    document.title = title;
    fill(part("title"), title);
    const steps = Math.max(...devices.map((device) => device.steps));
    const versions = Object.entries(report.versions).map(([tool, version]) => `${tool} ${version}`);
    const facts = [
      steps ? `${countText(steps)} ${steps === 1 ? "step" : "steps"}` : "",
      prediction ? `batch size ${countText(prediction.batch_size)}` : "",
      prediction ? `${prediction.engine} engine` : "",
      ...versions,
    ];
    fill(part("facts"), facts.filter(Boolean).join(" · "));
    if (prediction)
      fill(
        part("verdict"),
        element("p", { class: prediction.fits ? "banner good" : "banner bad" }, prediction.verdict),
      );
    fill(
      part("tabs"),
      devices.length < 2
        ? null
        : [null, ...views].map((each, index) =>
            element(
              "button",
              {
                type: "button",
                role: "tab",
                id: `tab-${index}`,
                "aria-selected": "false",
                onclick: () => open(each),
              },
              each ? each.device.tab : "Overview",
            ),
          ),
    );
  }

  function tile(label, value, note, kind = "") {
    return element(
      "div",
      { class: `tile ${kind}` },
      element("span", { class: "tile-label" }, label),
      element("b", {}, value),
      element("small", {}, note),
    );
  }

  // -- a device -----------------------------------------------------------------------------------------------------

  function open(next) {
    tip.hide();
    view = next;
    document
      .querySelectorAll("#tabs button")
      .forEach((tab, index) =>
        tab.setAttribute("aria-selected", String(index === (view ? views.indexOf(view) + 1 : 0))),
      );
    part("overview").hidden = view !== null;
    part("device").hidden = view === null;
    if (view === null) drawOverview();
    else drawDevice();
  }

  function drawDevice() {
    const { device } = view;
    const used = device.outside + device.peak_reserved;
    fill(
      part("tiles"),
      tile(mostText(device, "allocated"), sizeText(device.peak_allocated), bytesText(device.peak_allocated)),
      device.segments
        ? tile(mostText(device, "reserved"), sizeText(device.peak_reserved), bytesText(device.peak_reserved))
        : null,
      device.capacity
        ? tile(
            "used at most",
            shareText(used, device.capacity),
            `${sizeText(used)} of ${sizeText(device.capacity)}`,
            used > device.capacity ? "bad" : "",
          )
        : null,
      tile(
        "events",
        countText(device.events),
        device.count <= device.events
          ? `${countText(device.count)} moments shown, no peak left out`
          : "allocations, frees, segments",
      ),
    );
    fill(
      part("happened"),
      device.happened
        ? element(
            "p",
            { class: device.failed ? "banner bad" : "banner" },
            device.failed ? element("b", {}, "Out of memory. ") : null,
            device.happened,
          )
        : null,
    );
    const empty = device.count < 2 && !device.allocations.begin.length;
    part("empty").hidden = !empty;
    part("drawn").hidden = empty;
    if (timeline) timeline.destroy();
    timeline = null;
    drawOther(device);
    drawAdvice(device);
    fill(part("to-peak"), device.failed ? "Failure" : "Peak");
    fill(
      part("notes"),
      [...device.notes, device.conf ? `PYTORCH_CUDA_ALLOC_CONF was ${device.conf}` : null]
        .filter(Boolean)
        .map((note) => element("li", {}, note)),
    );
    part("notes-section").hidden = !part("notes").childElementCount;
    if (empty) return;
    timeline = drawTimeline(report, device, part("timeline"), pin);
    drawMoment();
  }

  function pin(moment) {
    view.moment = Math.max(0, Math.min(moment, view.device.count - 1));
    timeline.show(view.moment);
    drawMoment();
  }

  function drawMoment() {
    const { device, moment } = view;
    const inside = view.module === null ? null : insideOf(device, view.module);
    const main =
      device.failed && moment === device.moment
        ? "When memory ran out: "
        : moment === device.peak
          ? peakText(device)
          : "";
    fill(part("when"), main ? element("b", {}, main) : null, whenText(report, device, moment));
    fill(
      part("when-more"),
      device.knows_phases ? `event ${countText(device.moments.row[moment])} of ${countText(device.events)} · ` : null,
      `${sizeText(device.series.allocated[moment])} allocated`,
    );
    drawBridge(report, device, part("bridge"), moment);
    part("modules-section").hidden = !device.modules.name.length;
    drawModules(report, device, part("modules"), moment, view, (choice) => {
      const focused = document.activeElement.dataset.module;
      Object.assign(view, choice);
      tip.hide();
      drawMoment();
      part("modules").querySelector(`[data-module="${focused}"]`)?.focus({ preventScroll: true });
    });
    const only = inside
      ? element(
          "p",
          { class: "note" },
          `Only what belongs to ${device.modules.name[view.module]}. `,
          element(
            "button",
            {
              type: "button",
              class: "link",
              onclick: () => {
                view.module = null;
                drawMoment();
              },
            },
            "Show everything",
          ),
        )
      : null;
    fill(part("tensors-only"), only);
    drawSegments(report, device, part("segments"), moment, inside);
    drawTensors(report, device, part("tensors"), moment, inside);
    part("lines-section").hidden = !device.stacks;
    if (device.stacks) drawLines(report, device, part("lines"), moment, inside);
  }

  function drawOther(device) {
    const shown = report.beside[devices.indexOf(device)];
    part("beside-section").hidden = !shown;
    if (!shown) return;
    fill(part("beside-title"), `Memory, ${shown.heads[0]} and ${shown.heads[1]}`);
    drawBeside(report, shown, part("beside"));
  }

  function drawAdvice(device) {
    part("advice-section").hidden = !device.advice.length;
    const highest = Math.max(1, ...device.advice.map(({ saves }) => saves));
    fill(
      part("advice"),
      device.advice.map(({ saves, text, of_reserved: ofReserved, is_computed: isComputed }) =>
        element(
          "li",
          {},
          element(
            "div",
            { class: "saves" },
            isComputed ? element("b", {}, `about ${sizeText(saves)}`) : null,
            isComputed
              ? element("span", { class: "saves-bar", style: { width: `${(100 * saves) / highest}%` } })
              : null,
          ),
          element("span", {}, text, ofReserved ? " (of reserved memory)" : ""),
        ),
      ),
    );
  }

  // -- several devices ----------------------------------------------------------------------------------------------

  function drawOverview() {
    const largest = Math.max(
      1,
      ...devices.map((device) => Math.max(device.capacity, device.outside + device.peak_reserved)),
    );
    const parts = partsOf(report);
    const shown = new Set();
    const bar = (device) => {
      const held = breakdownAt(device, device.moment).parts;
      const pieces = parts.map(({ key, name }, i) => ({ key, name, size: held[i] })).filter(({ size }) => size > 0);
      pieces.forEach(({ key }) => shown.add(key));
      return element(
        "div",
        { class: "bar small" },
        pieces.map(({ key, name, size }) =>
          element("div", {
            class: `part ${key}`,
            title: `${name} ${sizeText(size)}`,
            style: { width: `${(100 * size) / largest}%` },
          }),
        ),
        device.capacity
          ? element("div", { class: "card-end", style: { width: `${(100 * device.capacity) / largest}%` } })
          : null,
      );
    };
    const most = devices.some((device) => device.is_window) ? "most" : "peak";
    const trained = devices.some((device) => device.steps);
    const figures = [`${most} allocated`, `${most} reserved`, "of the card", ...(trained ? ["steps"] : [])];
    const reserved = devices.map((device) => device.peak_reserved).sort((a, b) => b - a);
    const spread = reserved[0] - reserved[reserved.length - 1];
    const rows = views.map((each) => {
      const { device } = each;
      const link = element("button", { type: "button", class: "link", onclick: () => open(each) }, device.tab);
      return element(
        "tr",
        {},
        element(
          "td",
          {},
          link,
          device.name ? ` ${device.name}` : "",
          device.failed ? element("b", { class: "alarm" }, " out\u00a0of\u00a0memory") : null,
        ),
        element("td", { class: "number" }, sizeText(device.peak_allocated)),
        element("td", { class: "number" }, sizeText(device.peak_reserved)),
        element("td", { class: "number" }, shareText(device.outside + device.peak_reserved, device.capacity)),
        trained ? element("td", { class: "number" }, countText(device.steps)) : null,
        element("td", { class: "wide" }, bar(device)),
      );
    });
    fill(
      part("overview"),
      element("h2", {}, report.tabs === "device" ? "Devices" : report.tabs === "rank" ? "Ranks" : "Processes"),
      element(
        "div",
        { class: "scroll" },
        element("table", {}, headings(report.tabs, ...figures.map((text) => [text]), ""), element("tbody", {}, rows)),
      ),
      element(
        "div",
        { class: "legend" },
        parts.filter(({ key }) => shown.has(key)).map(({ key, name }) => element("span", {}, swatch(key), name)),
      ),
      element(
        "p",
        { class: "note" },
        `Each ${report.tabs} at its peak, or when its memory ran out. The red line is the card's end. `,
        `The fullest reserved ${sizeText(spread)} more than the emptiest.`,
      ),
    );
  }

  // -- estimates, colours, keys -------------------------------------------------------------------------------------

  function drawPrediction() {
    part("curve-section").hidden = !prediction || (!prediction.curve.length && !prediction.why_no_curve);
    if (part("curve-section").hidden) return;
    if (curve) curve.destroy();
    curve = null;
    if (prediction.curve.length) curve = drawCurve(report, part("curve"));
    else fill(part("curve"), element("p", { class: "note" }, prediction.why_no_curve));
  }

  function drawAll() {
    drawPrediction();
    open(view);
  }

  part("previous").addEventListener("click", () => pin(view.moment - 1));
  part("next").addEventListener("click", () => pin(view.moment + 1));
  part("to-peak").addEventListener("click", () => pin(view.device.moment));

  drawFrame();
  if (devices.length > 1) view = null;
  show(drawAll);
  let width = innerWidth;
  addEventListener("resize", () => {
    if (width === innerWidth) return;
    width = innerWidth;
    if (view && timeline) drawMoment();
  });
})();
