// The allocator's segments at a moment, one after another along lines: blocks in their categories' colours, and what is
// free between them.
"use strict";

const LINE_HEIGHT = 20;
const LINE_SPACE = 4;

/** Segments at a moment in order of stream and address, each with its pieces: blocks, and what is free. */
function segmentsAt(device, moment) {
  const { address, size, stream, expandable } = device.segments;
  const found = aliveAt(device.segments, moment)
    .sort((a, b) => stream[a] - stream[b] || address[a] - address[b])
    .reduce((list, row) => {
      const last = list[list.length - 1];
      if (
        last &&
        expandable[row] &&
        last.expandable &&
        last.stream === stream[row] &&
        last.address + last.size === address[row]
      ) {
        last.size += size[row];
      } else {
        list.push({
          address: address[row],
          size: size[row],
          stream: stream[row],
          expandable: expandable[row],
          pieces: [],
          held: 0,
        });
      }
      return list;
    }, []);
  const { address: place, block } = device.allocations;
  const rows = aliveAt(device.allocations, moment)
    .filter((row) => block[row] > 0)
    .sort((a, b) => place[a] - place[b]);
  let next = 0;
  let outside = rows.length;
  for (const segment of [...found].sort((a, b) => a.address - b.address)) {
    let at = segment.address;
    const end = segment.address + segment.size;
    const gap = (to) => {
      if (to > at) segment.pieces.push({ row: -1, address: at, size: to - at });
    };
    while (next < rows.length && place[rows[next]] < at) next += 1;
    for (; next < rows.length && place[rows[next]] < end; next += 1) {
      const row = rows[next];
      if (place[row] < at) continue; // of a damaged recording
      gap(place[row]);
      const length = Math.min(block[row], end - place[row]);
      segment.pieces.push({ row, address: place[row], size: length });
      segment.held += length;
      at = place[row] + length;
      outside -= 1;
    }
    gap(end);
  }
  return { segments: found, outside };
}

function drawSegments(report, device, box, moment, inside) {
  if (!device.segments) {
    fill(
      box,
      element(
        "p",
        { class: "note" },
        "The CPU has no caching allocator: a tensor's memory is freed when the tensor is.",
      ),
    );
    return;
  }
  const { segments, outside } = segmentsAt(device, moment);
  const total = segments.reduce((sum, segment) => sum + segment.size, 0);
  if (!total) {
    fill(
      box,
      element("p", { class: "note" }, "The allocator holds no segment at this moment, as far as the recording says."),
    );
    return;
  }
  const lines = Math.round(Math.max(4, Math.min(30, 3 * Math.sqrt(segments.length))));
  const perLine = total / lines;
  const canvas = element("canvas", {
    class: "segments",
    role: "img",
    "aria-label": "The allocator's segments and the blocks in them",
  });
  canvas.style.height = `${lines * (LINE_HEIGHT + LINE_SPACE)}px`;
  fill(box, facts(device, segments, moment, outside), canvas, key());
  const ratio = devicePixelRatio;
  const width = (canvas.width = Math.max(1, Math.round(canvas.clientWidth * ratio)));
  canvas.height = Math.round(lines * (LINE_HEIGHT + LINE_SPACE) * ratio);
  const pen = canvas.getContext("2d");
  const colours = report.categories.map((_, i) => colour(`category-${i}`));
  const free = { split: hatch(pen, colour("hatch"), colour("ground"), ratio), whole: colour("free") };
  const ground = colour("ground");
  const hits = [];

  let offset = 0;
  for (const segment of segments) {
    const start = offset;
    for (const piece of segment.pieces) {
      const from = start + piece.address - segment.address;
      eachLine(from, from + piece.size, (line, x, end) => {
        const y = line * (LINE_HEIGHT + LINE_SPACE) * ratio;
        const tall = LINE_HEIGHT * ratio;
        hits.push({ line, x, end, piece, segment });
        if (piece.row < 0) pen.fillStyle = segment.held ? free.split : free.whole;
        else {
          const owner = device.allocations.owner[piece.row];
          pen.globalAlpha = !inside || (owner >= 0 && inside[owner]) ? 1 : 0.16;
          pen.fillStyle = colours[device.allocations.category[piece.row]];
        }
        pen.fillRect(x, y, Math.max(0.5, end - x), tall);
        pen.globalAlpha = 1;
        if (piece.row >= 0 && end - x > 4 * ratio) {
          pen.fillStyle = ground;
          pen.fillRect(end - 0.7 * ratio, y, 0.7 * ratio, tall);
        }
      });
    }
    offset += segment.size;
    outline(start, offset);
  }

  /** A range of the bytes as pieces of lines, in pixels. */
  function eachLine(from, to, draw) {
    for (let line = Math.floor(from / perLine); line < lines && line * perLine < to; line += 1) {
      const x = ((Math.max(from, line * perLine) - line * perLine) / perLine) * width;
      const end = ((Math.min(to, (line + 1) * perLine) - line * perLine) / perLine) * width;
      if (end > x) draw(line, x, end);
    }
  }

  function outline(from, to) {
    pen.strokeStyle = colour("ink");
    pen.lineWidth = ratio;
    eachLine(from, to, (line, x, end) => {
      const y = line * (LINE_HEIGHT + LINE_SPACE) * ratio + ratio / 2;
      const tall = LINE_HEIGHT * ratio - ratio;
      pen.beginPath();
      pen.moveTo(x, y);
      pen.lineTo(end, y);
      pen.moveTo(x, y + tall);
      pen.lineTo(end, y + tall);
      if (line === Math.floor(from / perLine)) {
        pen.moveTo(x + ratio / 2, y);
        pen.lineTo(x + ratio / 2, y + tall);
      }
      pen.stroke();
    });
  }

  canvas.addEventListener("mousemove", (event) => {
    const rect = canvas.getBoundingClientRect();
    const x = (event.clientX - rect.left) * ratio;
    const line = Math.floor((event.clientY - rect.top) / (LINE_HEIGHT + LINE_SPACE));
    const hit = hits.find((each) => each.line === line && each.x <= x && x < each.end);
    if (!hit) return tip.hide();
    tip.show(event.clientX, event.clientY, ...about(hit));
  });
  canvas.addEventListener("mouseleave", () => tip.hide());

  function about({ piece, segment }) {
    const home = element(
      "div",
      { class: "tip-note" },
      `in a segment of ${sizeText(segment.size)}`,
      segment.expandable ? ", expandable" : null,
      segment.stream ? `, stream ${segment.stream}` : null,
    );
    if (piece.row < 0) {
      const why = segment.held
        ? "free between blocks: only what fits in can use it"
        : "a free segment: it can go back to the device";
      return [
        element("div", { class: "tip-title" }, sizeText(piece.size)),
        element("div", { class: "tip-note" }, why),
        home,
      ];
    }
    return [...aboutAllocation(report, device, piece.row), home];
  }

  function key() {
    return element(
      "div",
      { class: "legend" },
      element(
        "span",
        {},
        element("span", { class: "swatch split" }),
        "free between blocks: only what fits into a gap can use it",
      ),
      element("span", {}, element("span", { class: "swatch free" }), "a free segment: it can go back to the device"),
    );
  }
}

function facts(device, segments, moment, outside) {
  const gaps = segments.filter(({ held }) => held).flatMap(({ pieces }) => pieces.filter(({ row }) => row < 0));
  const whole = segments.filter(({ held }) => !held);
  const sum = (list) => list.reduce((all, { size }) => all + size, 0);
  const largest = [...gaps, ...whole].reduce((most, { size }) => Math.max(most, size), 0);
  const failed = device.failures.find((each) => each.moment === moment);
  const fact = (name, value) => element("span", { class: "fact" }, element("b", {}, value), ` ${name}`);
  const held = segments.filter(({ held: bytes }) => bytes).length;
  return element(
    "p",
    { class: "facts" },
    fact(segments.length === 1 ? "segment" : "segments", countText(segments.length)),
    fact(
      `free in ${countText(gaps.length)} pieces between blocks of ${countText(held)} segments`,
      sizeText(sum(gaps)),
    ),
    fact(`in ${countText(whole.length)} free segments`, sizeText(sum(whole))),
    fact("is the largest free piece", sizeText(largest)),
    failed
      ? element(
          "span",
          { class: "fact alarm" },
          element("b", {}, sizeText(failed.size)),
          " were asked for, and failed",
        )
      : null,
    outside ? fact("blocks lie in segments that the recording does not know", countText(outside)) : null,
  );
}
