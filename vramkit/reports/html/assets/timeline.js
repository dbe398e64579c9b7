// The timeline: categories stacked over the events, phases shaded, a window that zooms and moves, a pin.
"use strict";

const CHART_HEIGHT = 340;
const LANES = 44; // pixels below the chart, for phases and steps
const AXIS = 72; // pixels left of the chart, for sizes
const MARGIN = AXIS + 8;
const MIN_WINDOW = 4; // events
const FONT = "12px system-ui, sans-serif";

/**
 * Draws the timeline of a device into a box.
 *
 * pin(moment) is called when somebody chose a moment; what comes back has show(moment), which marks one.
 */
function drawTimeline(report, device, box, pin) {
  const rows = device.moments.row;
  const whole = [rows[0], Math.max(rows[device.count - 1], rows[0] + 1) + 1];
  const bands = stretches(device);
  const shown = partsOf(report)
    .map((part, index) => ({ ...part, index }))
    .filter(
      ({ index }) => index < report.categories.length && device.series.categories[index].some((size) => size > 0),
    );
  let range = whole;
  let picked = null; // what is drawn: see pickMoments
  let pinned = device.moment;

  const chart = element("div", {
    class: "chart",
    tabindex: "0",
    role: "application",
    "aria-label":
      "Memory over the recording. Left and right choose another moment, plus and minus zoom, 0 shows all.",
  });
  const strip = makeStrip(device, whole, look);
  const button = (label, title, action) =>
    element("button", { type: "button", title, "aria-label": title, onclick: action }, label);
  const tools = element(
    "div",
    { class: "tools" },
    button("−", "Zoom out (−)", () => zoom(2)),
    button("+", "Zoom in (+)", () => zoom(0.5)),
    device.knows_phases ? button("Step", "Show the pinned moment's step (S)", showStep) : null,
    button("All", "Show the whole recording (0)", () => look(whole)),
    element("span", { class: "hint" }, "Drag to zoom, drag the strip below to move, click to pin a moment."),
  );
  fill(box, tools, chart, strip.canvas, legend());

  const plot = new uPlot(options(), columnsFor(range), chart);
  chart.setAttribute("data-ready", "");

  // -- what is shown ------------------------------------------------------------------------------------------------

  function legend() {
    const items = [
      ...shown.map(({ key, name }) => [swatch(key), name]),
      [swatch("slack"), "rounding and slack"],
      ...(device.segments ? [[element("span", { class: "line-sample" }), "reserved"]] : []),
      ...(device.failures.length ? [[element("span", { class: "mark failure" }, "▼"), "an allocation failed"]] : []),
      ...(device.flushes.length
        ? [[element("span", { class: "mark flush" }, "◆"), "cached segments went back: a retry, or empty_cache()"]]
        : []),
    ];
    const phases = [...new Set(bands.map(({ phase }) => phase))].filter((phase) => phase > 0).sort();
    const shaded = phases.map((phase) => [swatch(`phase-${phase}`), report.phases[phase]]);
    const line = (all) => element("div", { class: "legend" }, all.map((item) => element("span", {}, item)));
    return [line(items), shaded.length ? line([["phases:"], ...shaded]) : null];
  }

  function columnsFor([low, high]) {
    const first = lastBefore(rows, low);
    const last = lastBefore(rows, high);
    picked = pickMoments(device, first, last, Math.max(100, chart.clientWidth - MARGIN));
    const { places, moments } = picked;
    const count = moments.length;
    const upToTheEdge = (values, end) =>
      Float64Array.from({ length: count + 1 }, (_, i) => (i < count ? values[i] : end));
    const x = upToTheEdge(places, Math.max(high, rows[last] + 1));
    const level = (column) =>
      upToTheEdge(
        moments.map((moment) => column[moment]),
        column[moments[count - 1]],
      );
    const stacked = [];
    let below = new Float64Array(x.length);
    for (const { index } of shown) {
      below = level(device.series.categories[index]).map((size, i) => size + below[i]);
      stacked.push(below);
    }
    return [
      x,
      level(device.series.allocated),
      ...stacked.reverse(),
      upToTheEdge(picked.reserved, picked.reserved[count - 1]),
    ];
  }

  function options() {
    const stepped = uPlot.paths.stepped({ align: 1 });
    const area = (key) => ({
      fill: colour(key),
      stroke: colour(key),
      width: 0,
      paths: stepped,
      points: { show: false },
    });
    return {
      width: Math.max(200, chart.clientWidth),
      height: CHART_HEIGHT + LANES,
      legend: { show: false },
      padding: [16, MARGIN - AXIS, 0, 0],
      cursor: { y: false, points: { show: false }, drag: { x: true, y: false, setScale: false, dist: 6 } },
      scales: { x: { time: false, range: () => range }, y: { range: () => [0, ceiling()] } },
      axes: [
        { size: LANES, splits: () => [], grid: { show: false }, ticks: { show: false } },
        {
          size: AXIS,
          space: 44,
          font: FONT,
          stroke: colour("muted"),
          incrs: Array.from({ length: 50 }, (_, power) => 2 ** power),
          values: (_, ticks) => ticks.map(sizeText),
          grid: { stroke: colour("grid"), width: 1 },
          ticks: { show: false },
        },
      ],
      series: [
        {},
        area("slack"),
        ...shown.map(({ key }) => area(key)).reverse(),
        {
          stroke: device.segments ? colour("ink") : "transparent",
          width: 1.5,
          paths: stepped,
          points: { show: false },
        },
      ],
      hooks: {
        drawClear: [shadePhases],
        draw: [drawLanes, drawMarks],
        setCursor: [hover],
        setSelect: [select],
      },
    };
  }

  /** The card's end is shown if that leaves the rest readable. */
  function ceiling() {
    const highest = Math.max(device.peak_reserved, device.peak_allocated, 1);
    const end = device.capacity - device.outside;
    return 1.06 * (end > 0 && highest > 0.45 * end ? Math.max(end, highest) : highest);
  }

  // -- drawing on the chart -----------------------------------------------------------------------------------------

  function eachBand(u, draw) {
    const ratio = devicePixelRatio;
    const { left, width } = u.bbox;
    let edge = -Infinity;
    for (const band of bands) {
      const from = Math.max(left, u.valToPos(rows[band.first], "x", true));
      const to = Math.min(left + width, u.valToPos(rows[band.last] + 1, "x", true));
      if (to <= left || from >= left + width || to - edge < ratio / 2) continue; // more than a pixel can show
      edge = to;
      draw(band, from, to, ratio);
    }
  }

  function shadePhases(u) {
    const shades = report.phases.map((_, phase) => colour(`shade-${phase}`));
    eachBand(u, (band, from, to) => {
      u.ctx.fillStyle = shades[band.phase] || "transparent";
      u.ctx.fillRect(from, u.bbox.top, to - from, u.bbox.height);
    });
  }

  function drawLanes(u) {
    const { ctx, bbox } = u;
    const top = bbox.top + bbox.height + 5 * devicePixelRatio;
    const tall = 16 * devicePixelRatio;
    const steps = new Map();
    const inks = report.phases.map((_, phase) => colour(`phase-${phase}`) || colour("grid"));
    const ink = colour("ink");
    ctx.save();
    ctx.font = FONT.replace("12", Math.round(11 * devicePixelRatio));
    ctx.textBaseline = "middle";
    ctx.textAlign = "center";
    eachBand(u, (band, from, to, ratio) => {
      ctx.fillStyle = inks[band.phase];
      ctx.fillRect(from, top, Math.max(1, to - from - Math.min(ratio, (to - from) / 4)), tall);
      ctx.fillStyle = ink;
      const name = band.phase === 0 ? "" : report.phases[band.phase];
      if (ctx.measureText(name).width + 6 * ratio < to - from) ctx.fillText(name, (from + to) / 2, top + tall / 2);
      const known = steps.get(band.step);
      steps.set(band.step, known ? [known[0], to] : [from, to]);
    });
    let free = -Infinity;
    ctx.strokeStyle = ctx.fillStyle = colour("muted");
    for (const [step, [from, to]] of steps) {
      const text = to - from > 60 * devicePixelRatio ? `step ${step + 1}` : `${step + 1}`;
      const half = ctx.measureText(text).width / 2 + 4 * devicePixelRatio;
      const middle = (from + to) / 2;
      if (middle - half < free) continue;
      ctx.fillRect(from, top, devicePixelRatio, tall * 2.1);
      ctx.fillText(text, middle, top + tall * 1.65);
      free = middle + half;
    }
    ctx.restore();
  }

  function drawMarks(u) {
    const { ctx, bbox } = u;
    const ratio = devicePixelRatio;
    const at = (moment) => u.valToPos(rows[moment] + 0.5, "x", true);
    const inside = (x) => x >= bbox.left - 1 && x <= bbox.left + bbox.width + 1;
    const line = (x, style, dash, bottom = bbox.top + bbox.height) => {
      ctx.strokeStyle = style;
      ctx.lineWidth = 1.5 * ratio;
      ctx.setLineDash(dash.map((each) => each * ratio));
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bottom);
      ctx.stroke();
    };
    ctx.save();
    ctx.font = FONT.replace("12", Math.round(11 * ratio));
    ctx.textAlign = "center";
    const end = device.capacity - device.outside;
    if (end > 0 && end < ceiling()) {
      const y = u.valToPos(end, "y", true);
      ctx.strokeStyle = ctx.fillStyle = colour("alarm");
      ctx.lineWidth = 1.5 * ratio;
      ctx.setLineDash([7 * ratio, 4 * ratio]);
      ctx.beginPath();
      ctx.moveTo(bbox.left, y);
      ctx.lineTo(bbox.left + bbox.width, y);
      ctx.stroke();
      ctx.textAlign = "right";
      ctx.fillText(
        `the card's end${device.outside ? ", less CUDA context" : ""}`,
        bbox.left + bbox.width - 4 * ratio,
        y - 5 * ratio,
      );
      ctx.textAlign = "center";
    }
    const sign = (moment, text, style) => {
      const x = at(moment);
      if (!inside(x)) return;
      ctx.fillStyle = style;
      const half = ctx.measureText(text).width / 2; // words may not stand out at the sides
      const middle = Math.max(bbox.left + half, Math.min(x, bbox.left + bbox.width - half));
      ctx.fillText(text, middle, bbox.top - 4 * ratio);
    };
    for (const moment of device.flushes) sign(moment, "◆", colour("muted"));
    const near = device.failures.some(({ moment }) => Math.abs(at(moment) - at(device.peak)) < 30 * ratio);
    if (!near) sign(device.peak, device.is_window ? "▲ highest" : "▲ peak", colour("ink"));
    for (const { moment } of device.failures) {
      if (inside(at(moment))) line(at(moment), colour("alarm"), [2, 3]);
      sign(moment, "▼", colour("alarm"));
    }
    const x = at(pinned);
    if (inside(x)) {
      const level = u.valToPos(device.series.allocated[pinned], "y", true); // a narrow peak is not to be covered
      line(x, colour("accent"), [5, 2], level);
      ctx.fillStyle = colour("accent");
      ctx.setLineDash([]);
      for (const y of [level, bbox.top + bbox.height]) {
        ctx.beginPath();
        ctx.arc(x, y, 4.5 * ratio, 0, 7);
        ctx.fill();
      }
    }
    ctx.restore();
  }

  // -- moving -------------------------------------------------------------------------------------------------------

  function look([low, high]) {
    const length = Math.min(Math.max(high - low, MIN_WINDOW), whole[1] - whole[0]);
    const from = Math.max(whole[0], Math.min(low, whole[1] - length));
    range = [from, from + length];
    plot.setData(columnsFor(range));
    chart.dataset.range = range.join(" ");
    strip.draw(range, pinned);
  }

  /** Make the window longer or shorter around a place: the pinned moment, where it can be seen. */
  function zoom(factor, place) {
    const [low, high] = range;
    const seen = rows[pinned] >= low && rows[pinned] <= high;
    const middle = place ?? (seen ? rows[pinned] : (low + high) / 2);
    look([middle - (middle - low) * factor, middle + (high - middle) * factor]);
  }

  function showStep() {
    const own = bands.filter((band) => band.step === device.moments.step[pinned]);
    if (own.length) look([rows[own[0].first] - 1, rows[own[own.length - 1].last] + 2]);
  }

  function select(u) {
    if (u.select.width < 6) return;
    look([u.posToVal(u.select.left, "x"), u.posToVal(u.select.left + u.select.width, "x")]);
    u.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
  }

  function momentUnder(u) {
    return picked.moments[lastBefore(picked.places, u.posToVal(u.cursor.left, "x"))];
  }

  function hover(u) {
    const { left } = u.cursor;
    if (left === null || left < 0) return tip.hide();
    const moment = momentUnder(u);
    const held = breakdownAt(device, moment);
    const rect = u.over.getBoundingClientRect();
    const parts = partsOf(report).map((part, i) => ({ ...part, size: held.parts[i] }));
    tip.show(
      rect.left + left,
      rect.top + Math.max(0, u.cursor.top),
      element("div", { class: "tip-title" }, whenText(report, device, moment)),
      parts
        .slice(0, -3)
        .filter(({ size }) => size > 0)
        .reverse()
        .map(({ key, name, size }) => tipRow(key, name, size)),
      tipRow(null, "allocated", held.allocated),
      device.segments ? tipRow(null, "reserved", held.reserved) : null,
      element("div", { class: "tip-note" }, `after event ${countText(rows[moment])}; click to pin`),
    );
  }

  let pressed = 0;
  plot.over.addEventListener("mousedown", (event) => (pressed = event.clientX));
  plot.over.addEventListener("click", (event) => {
    if (Math.abs(event.clientX - pressed) > 4) return;
    pin(momentUnder(plot));
  });
  plot.over.addEventListener("mouseleave", () => tip.hide());
  plot.over.addEventListener(
    "wheel",
    (event) => {
      if (!event.ctrlKey && !event.metaKey && !event.shiftKey) return; // a page must scroll
      event.preventDefault();
      const rect = plot.over.getBoundingClientRect();
      const place = plot.posToVal(event.clientX - rect.left, "x");
      const turned = event.deltaY || event.deltaX;
      if (event.shiftKey) {
        const shift = ((range[1] - range[0]) * Math.sign(turned)) / 8;
        look([range[0] + shift, range[1] + shift]);
      } else zoom(Math.exp(Math.max(-1, Math.min(1, turned / 200))), place);
    },
    { passive: false },
  );
  chart.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const far = event.shiftKey
      ? Math.max(1, Math.round((lastBefore(rows, range[1]) - lastBefore(rows, range[0])) / 40))
      : 1;
    const actions = {
      ArrowLeft: () => pin(Math.max(0, pinned - far)),
      ArrowRight: () => pin(Math.min(device.count - 1, pinned + far)),
      Home: () => pin(0),
      End: () => pin(device.count - 1),
      p: () => pin(device.peak),
      s: showStep,
      "+": () => zoom(0.5),
      "=": () => zoom(0.5),
      "-": () => zoom(2),
      0: () => look(whole),
      Escape: () => look(whole),
    };
    const action = actions[event.key] ?? actions[event.key.toLowerCase()];
    if (!action) return;
    event.preventDefault();
    action();
  });

  strip.draw(range, pinned);
  const resized = new ResizeObserver(() => {
    if (chart.clientWidth < 1 || chart.clientWidth === plot.width) return;
    plot.setSize({ width: chart.clientWidth, height: CHART_HEIGHT + LANES });
    look(range);
  });
  resized.observe(chart);

  return {
    show(moment) {
      pinned = moment;
      const place = rows[moment];
      if (place < range[0] || place > range[1]) {
        const half = (range[1] - range[0]) / 2;
        look([place - half, place + half]);
      } else {
        plot.redraw(false);
        strip.draw(range, pinned);
      }
    },
    range: () => range,
    destroy() {
      resized.disconnect();
      plot.destroy();
    },
  };
}
