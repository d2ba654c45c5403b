"use strict";
// Reads /metrics every other second while somebody looks, and sends what is in a form. Text stays text: `textContent`.
const EVERY = 2000, WINDOW = 60000; // milliseconds: between two looks, and of what counts as now
const ROWS = 100; // candidates of an answer that are shown
const looks = []; // of the last minute, oldest first

const samplesOf = text => text.split("\n").flatMap(line => {
  const found = /^(\w+)(?:\{(.*)\})? (\S+)$/.exec(line);
  if (!found) return [];
  const labels = Object.fromEntries([...(found[2] || "").matchAll(/(\w+)="([^"]*)"/g)].map(l => [l[1], l[2]]));
  return [{ name: found[1], labels, value: Number(found[3]) }];
});

const sum = (samples, name, fits = () => true) =>
  samples.filter(s => s.name === "rankhoist_" + name && fits(s.labels)).reduce((all, s) => all + s.value, 0);

// [upper bound, requests up to it], ascending.
const bucketsOf = (samples, model) => samples
  .filter(s => s.name === "rankhoist_request_seconds_bucket" && s.labels.model === model)
  .map(s => [s.labels.le === "+Inf" ? Infinity : Number(s.labels.le), s.value]).sort((a, b) => a[0] - b[0]);

// As Prometheus' histogram_quantile: requests are spread evenly over their bucket.
function quantile(buckets, share) {
  const all = buckets.length ? buckets[buckets.length - 1][1] : 0;
  if (!(all > 0)) return "–";
  const i = buckets.findIndex(b => b[1] >= share * all);
  const [below, count] = i ? buckets[i - 1] : [0, 0];
  if (buckets[i][0] === Infinity) return "over " + milliseconds(below);
  return milliseconds(below + (buckets[i][0] - below) * (share * all - count) / (buckets[i][1] - count));
}

const milliseconds = seconds => `${(seconds * 1000).toPrecision(3)} ms`;
const counted = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;
const bytes = n => n < 1e6 ? `${(n / 1e3).toFixed(1)} kB` : `${(n / 1e6).toFixed(1)} MB`;

// What happened between two looks; since the start where there is no earlier one.
function period(model, now, before) {
  const own = labels => labels.model === model;
  const change = (name, fits = own) => sum(now, name, fits) - sum(before, name, fits);
  const earlier = new Map(bucketsOf(before, model));
  const buckets = bucketsOf(now, model).map(([most, count]) => [most, count - (earlier.get(most) || 0)]);
  const reused = change("state_cache_hits_total") + change("state_cache_grown_total");
  const asked = reused + change("state_cache_misses_total");
  return {
    scored: change("request_seconds_count").toFixed(0),
    refused: change("requests_total", labels => own(labels) && labels.status !== "200").toFixed(0),
    p50: quantile(buckets, .5), p99: quantile(buckets, .99),
    reused: asked ? `${reused.toFixed(0)} of ${asked.toFixed(0)}` : "–",
  };
}

function show(section, now, before) {
  const model = section.dataset.model;
  for (const [column, from] of [["now", before], ["all", []]])
    for (const [name, value] of Object.entries(period(model, now, from)))
      section.querySelector(`[data-live="${name}-${column}"]`).textContent = value;
  section.querySelector("[data-live=held]").textContent =
    bytes(sum(now, "state_cache_bytes", labels => labels.model === model));
  const served = now.filter(s => s.name === "rankhoist_model_version" && s.labels.model === model && s.value === 1);
  if (served.length) section.querySelector(".version").textContent = served.map(s => s.labels.version).join(", ");
}

async function look() {
  const health = document.getElementById("health");
  try {
    const answer = await fetch("metrics");
    if (!answer.ok) throw new Error(answer.status);
    const samples = samplesOf(await answer.text()), time = performance.now();
    while (looks.length && looks[0].time < time - WINDOW) looks.shift();
    looks.push({ time, samples });
    for (const section of document.querySelectorAll(".model")) show(section, samples, looks[0].samples);
    health.textContent = `${counted(sum(samples, "workers_ready"), "worker")} ready, ${counted(sum(samples, "queue_length"), "request")} under way`;
  } catch (error) {
    health.textContent = "the server does not answer";
  }
}

function row(name, cells) {
  const made = document.createElement("tr");
  for (const text of cells) made.appendChild(document.createElement(name)).textContent = text;
  return made;
}

// Best first: place, number of the candidate, its scores by output, which are `sorted` where the best k were asked for.
function tableOf(answer, sorted) {
  const outputs = Array.isArray(answer.scores) ? { score: answer.scores } : answer.scores;

  const table = document.createElement("table");
  table.appendChild(document.createElement("thead")).append(row("th", ["place", "candidate", ...Object.keys(outputs)]));
  const body = table.appendChild(document.createElement("tbody"));
  answer.order.slice(0, ROWS).forEach((candidate, place) => {
    const scores = Object.values(outputs).map(values => values[sorted ? place : candidate]);
    body.append(row("td", [place + 1, candidate, ...scores.map(s => JSON.stringify(s))]));
  });
  return table;
}

async function rank(section) {
  const said = section.querySelector(".said"), shown = section.querySelector(".answer");
  const body = section.querySelector("textarea").value, start = performance.now();
  shown.replaceChildren();
  said.className = "said";
  try {
    const path = `v1/models/${encodeURIComponent(section.dataset.model)}/rank`;
    const answer = await fetch(path, { method: "POST", headers: { "content-type": "application/json" }, body });
    const found = await answer.json();
    if (!answer.ok) throw new Error(`${answer.status} ${found.reason}: ${found.error}`);
    const count = found.order.length > ROWS ? `the best ${ROWS} of ${found.order.length}` : `${found.order.length}`;
    said.textContent = `${count} candidates in ${(performance.now() - start).toFixed(1)} ms, version ${found.version}`;
    shown.append(tableOf(found, typeof JSON.parse(body).top_k === "number"));
  } catch (error) {
    said.className = "said refused";
    said.textContent = error.message;
  }
  look();
}

for (const section of document.querySelectorAll(".model:has(textarea)"))
  section.querySelector(".rank").addEventListener("click", () => rank(section));
setInterval(() => document.hidden || look(), EVERY);
look();
