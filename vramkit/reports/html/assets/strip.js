// The strip below the timeline: the whole recording, with the window that the timeline shows of it.
"use strict";

/** look([low, high]) is called when the window was moved. draw(range, pinned) draws it anew. */
function makeStrip(device, whole, look) {
  const canvas = element("canvas", { class: "strip", "aria-hidden": "true" });
  let length = whole[1] - whole[0];

  function draw(range, pinned) {
    length = range[1] - range[0];
    const ratio = devicePixelRatio;
    const width = (canvas.width = Math.max(1, Math.round(canvas.clientWidth * ratio)));
    const height = (canvas.height = Math.round(canvas.clientHeight * ratio));
    const pen = canvas.getContext("2d");
    const scale = width / (whole[1] - whole[0]);
    const highest = Math.max(1, device.peak_allocated);
    pen.fillStyle = colour("hatch");
    const { places, moments } = pickMoments(device, 0, device.count - 1, width);
    pen.beginPath();
    pen.moveTo(0, height);
    moments.forEach((moment, i) => {
      const y = height - (device.series.allocated[moment] / highest) * height * 0.92;
      const next = i + 1 < moments.length ? places[i + 1] : whole[1];
      pen.lineTo((places[i] - whole[0]) * scale, y);
      pen.lineTo((next - whole[0]) * scale, y);
    });
    pen.lineTo(width, height);
    pen.fill();
    const [from, to] = range.map((place) => (place - whole[0]) * scale);
    const shown = Math.max(3 * ratio, to - from);
    if (shown < width - 1) {
      pen.fillStyle = colour("veil");
      pen.fillRect(0, 0, from, height);
      pen.fillRect(from + shown, 0, width, height);
      pen.strokeStyle = colour("ink");
      pen.lineWidth = 2 * ratio;
      pen.strokeRect(from, ratio, shown, height - 2 * ratio);
    }
    pen.fillStyle = colour("accent");
    pen.fillRect((device.moments.row[pinned] + 0.5 - whole[0]) * scale - ratio, 0, 2 * ratio, height);
  }

  const moveTo = (event) => {
    const rect = canvas.getBoundingClientRect();
    const place = whole[0] + ((event.clientX - rect.left) / rect.width) * (whole[1] - whole[0]);
    look([place - length / 2, place + length / 2]);
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    moveTo(event);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (canvas.hasPointerCapture(event.pointerId)) moveTo(event);
  });
  return { canvas, draw };
}
