// Keeps the open page up to date and draws its charts. Every page works without this file.
"use strict";

const region = document.getElementById("live");
const source = document.querySelector("[data-live]");
const state = document.getElementById("live-state");
const button = document.getElementById("live-button");

// --- live updates -----------------------------------------------------------------------------------------------

let stream = null;
let isPaused = false;
let isLost = false;
let again = 0;

function show(text, lost) {
  if (isLost !== lost || state.textContent !== text) {
    isLost = lost;
    state.textContent = text;
    state.classList.toggle("lost", lost);
  }
}

// What a person has opened, draws or types stays as it is.
const callbacks = {
  beforeAttributeUpdated: (name, node) => !(node.tagName === "DETAILS" && name === "open"),
  beforeNodeMorphed: (node) => !(node.classList && node.classList.contains("plot")),
};

function replace(html) {
  Idiomorph.morph(region, html, { morphStyle: "innerHTML", ignoreActiveValue: true, callbacks });
  draw();
}

function open() {
  clearTimeout(again);
  if (stream !== null || isPaused || document.hidden) return;
  stream = new EventSource(source.dataset.live);
  stream.addEventListener("page", (event) => {
    const page = JSON.parse(event.data);
    replace(page.html);
    const [, ...rest] = document.title.split(" - ");
    document.title = [page.title.slice(0, 100), ...rest].join(" - ");
    show("live", false);
  });
  stream.addEventListener("problem", (event) => show(JSON.parse(event.data).text, true));
  stream.addEventListener("error", () => {
    // A stream ends every 25 s, and the browser opens the next one. It does not do so after an HTTP error.
    if (stream === null) return;
    if (stream.readyState === EventSource.CLOSED) {
      close();
      show("connection lost", true);
      again = setTimeout(open, 2000);
    } else {
      again = setTimeout(() => {
        if (stream !== null && stream.readyState !== EventSource.OPEN) show("connection lost", true);
      }, 3000);
    }
  });
  stream.addEventListener("open", () => clearTimeout(again));
}

function close() {
  clearTimeout(again);
  if (stream !== null) stream.close();
  stream = null;
}

// --- charts -----------------------------------------------------------------------------------------------------

// The numbers are in a table of the page, where everybody can read them; a chart draws its columns.
function columns() {
  const rows = document.querySelectorAll("#history tbody tr");
  const read = (row, at) => {
    const text = row.cells[at].textContent;
    return text === "" ? null : Number(text);
  };
  const times = [...rows].map((row) => Date.parse(row.cells[0].textContent.replace(" ", "T") + "Z") / 1000);
  return { times, of: (at) => [...rows].map((row) => read(row, at)) };
}

const CHARTS = {
  stacked: [["completed and failed", 1, "--good", 2], ["failed", 2, "--bad"]],
  counts: [["completed", 1, "--good"], ["failed", 2, "--bad"], ["retried", 3, "--warn"]],
  durations: [["average s", 4, "--accent"]],
};
const DASHES = [[], [6, 3], [2, 3], [1, 2]];
const plots = new Map();

function color(name) {
  const probe = document.createElement("span");
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const value = getComputedStyle(probe).color;
  probe.remove();
  return value;
}

function utc(time) {
  return new Date(time * 1000).toISOString().slice(0, 16).replace("T", " ");
}

// The time of day, or the date if the chart shows more than two days.
function shortTime(times) {
  const isLong = times[times.length - 1] - times[0] > 2 * 86400;
  return (time) => (isLong ? utc(time).slice(5, 10) : utc(time).slice(11));
}

function draw() {
  for (const figure of document.querySelectorAll("[data-chart]")) {
    const place = figure.querySelector(".plot");
    const numbers = columns();
    const series = CHARTS[figure.dataset.chart];
    const column = ([, at, , added]) => {
      const values = numbers.of(at);
      return added === undefined ? values : numbers.of(added).map((value, index) => value + values[index]);
    };
    const data = [numbers.times, ...series.map(column)];
    const known = plots.get(place);
    if (known !== undefined) {
      known.setData(data);
      continue;
    }
    const axis = { stroke: color("--soft"), grid: { stroke: color("--line"), width: 1 }, ticks: { stroke: color("--line") } };
    plots.set(place, new uPlot({
      width: Math.max(200, place.clientWidth),
      height: 180,
      cursor: { y: false },
      scales: { y: { range: (_plot, _low, high) => [0, high > 0 ? high * 1.05 : 1] } },
      axes: [{ ...axis, values: (_plot, times) => times.map(shortTime(numbers.times)), space: 80 }, { ...axis, size: 72 }],
      series: [
        { label: "From", value: (_plot, time) => (time === null ? "--" : `${utc(time)} UTC`) },
        ...series.map(([label, , name], at) => ({
          label, stroke: color(name), width: 2, dash: DASHES[at], points: { show: false },
          ...(figure.dataset.chart === "stacked" && { fill: color(name), width: 1, dash: [] }),
        })),
      ],
      tzDate: (time) => uPlot.tzDate(new Date(time * 1000), "Etc/UTC"),
    }, data, place));
  }
}

window.addEventListener("resize", () => {
  for (const [place, plot] of plots) plot.setSize({ width: Math.max(200, place.clientWidth), height: 180 });
});

// --- small things -----------------------------------------------------------------------------------------------

for (const copy of document.querySelectorAll("[data-copy]")) {
  if (!navigator.clipboard) continue;
  copy.hidden = false;
  copy.addEventListener("click", () => navigator.clipboard.writeText(copy.dataset.copy).then(() => (copy.textContent = "Copied")));
}

// --- start ------------------------------------------------------------------------------------------------------

if (region !== null && source !== null) {
  button.hidden = false;
  button.addEventListener("click", () => {
    isPaused = !isPaused;
    button.textContent = isPaused ? "Continue updates" : "Pause updates";
    if (isPaused) {
      close();
      show("updates paused", false);
    } else {
      open();
    }
  });
  document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
  window.addEventListener("pagehide", close);
  window.addEventListener("pageshow", open);
  draw();
  open();
}
