// The four pictures of "Explore". The formulas come first, in the symbols of notebook 3; the browser test
// compares them with rlhf_helpers. No dependency and nothing loaded: the page's data stand in the page.

// GAE of one response: [advantages, returns, deltas]
function gae(rewards, values, gamma, lam) {
  const advantages = [], deltas = [];
  let nextValue = 0, nextAdvantage = 0;
  for (let t = rewards.length - 1; t >= 0; t--) {
    deltas[t] = rewards[t] + gamma * nextValue - values[t];
    advantages[t] = deltas[t] + gamma * lam * nextAdvantage;
    [nextValue, nextAdvantage] = [values[t], advantages[t]];
  }
  return [advantages, advantages.map((A, t) => A + values[t]), deltas];
}

// what PPO maximises for one token
function clippedObjective(ratio, A, epsilon) {
  return Math.min(ratio * A, Math.min(Math.max(ratio, 1 - epsilon), 1 + epsilon) * A);
}

// the policy that maximises E[r] - beta KL(pi || ref): ref e^(r / beta) / Z
function optimum(ref, reward, beta) {
  const logits = ref.map((p, i) => Math.log(p) + reward[i] / beta), largest = Math.max(...logits);
  const weights = logits.map((x) => Math.exp(x - largest)), Z = sum(weights);
  return weights.map((w) => w / Z);
}

function exactKL(pi, ref) {
  return sum(pi.map((p, i) => (p > 0 ? p * Math.log(p / ref[i]) : 0)));
}

function klEstimates(logprob, refLogprob) {
  const x = refLogprob - logprob;
  return { k1: -x, k2: (x * x) / 2, k3: Math.expm1(x) - x };
}

// the expected best of n of the drawn scores, without replacement
function expectedBest(scores, n) {
  const ranked = [...scores].sort((a, b) => a - b);
  return sum(ranked.map((score, i) => (score * choose(i, n - 1)) / choose(ranked.length, n)));
}

function bestOfNKL(n) {
  return Math.log(n) - (n - 1) / n;
}

function choose(n, k) {
  if (k > n) return 0;
  let found = 1;
  for (let i = 1; i <= k; i++) found *= (n - k + i) / i;
  return found;
}

function sum(xs) {
  return xs.reduce((a, b) => a + b, 0);
}

// random numbers that the same seed repeats (mulberry32)
function randomNumbers(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

// mean and standard error of k1, k2, k3 over words drawn from pi
function sampledKL(pi, ref, n, seed) {
  const random = randomNumbers(seed), sums = { k1: [0, 0], k2: [0, 0], k3: [0, 0] };
  for (let s = 0; s < n; s++) {
    let u = random(), i = 0;
    while (i < pi.length - 1 && u >= pi[i]) u -= pi[i++];
    for (const [name, k] of Object.entries(klEstimates(Math.log(pi[i]), Math.log(ref[i])))) {
      sums[name][0] += k;
      sums[name][1] += k * k;
    }
  }
  return Object.fromEntries(Object.entries(sums).map(([name, [first, second]]) => {
    const mean = first / n;
    return [name, [mean, Math.sqrt(Math.max(second / n - mean * mean, 0) / n)]];
  }));
}

// the six words, their probabilities and their stars; 1.2 is about the stars' standard deviation
const SIX = { words: ["fine", "good", "bad", "nice", "superb", "dull"], ref: [0.3, 0.25, 0.2, 0.15, 0.07, 0.03] };
const STARS = [3, 4, 1, 4, 5, 2], MEAN_STARS = sum(STARS.map((stars, i) => SIX.ref[i] * stars));
SIX.reward = STARS.map((stars) => (stars - MEAN_STARS) / 1.2);

// ---- drawing

const $ = (id) => document.getElementById(id);
const signed = (x, digits = 2) => (x < 0 ? "−" : "+") + Math.abs(x).toFixed(digits);
const WIDTH = 340, HEIGHT = 200, LEFT = 38, BOTTOM = 34, TOP = 12;

// x and y to pixels of the picture
function scales([x0, x1], [y0, y1]) {
  return [(x) => LEFT + ((x - x0) / (x1 - x0)) * (WIDTH - LEFT - 12),
    (y) => HEIGHT - BOTTOM - ((y - y0) / (y1 - y0)) * (HEIGHT - BOTTOM - TOP)];
}

function line(points, [X, Y], kind) {
  return `<polyline class="${kind}" points="${points.map(([x, y]) => `${X(x)},${Y(y)}`).join(" ")}"/>`;
}

function text(x, y, words, anchor = "middle") {
  return `<text x="${x}" y="${y}" text-anchor="${anchor}">${words}</text>`;
}

function axes([X, Y], xs, ys, xlabel, ylabel) {
  return xs.map((x) => text(X(x), HEIGHT - BOTTOM + 14, x)).join("")
    + ys.map((y) => `<line class="grid" x1="${LEFT}" x2="${WIDTH - 12}" y1="${Y(y)}" y2="${Y(y)}"/>`
      + text(LEFT - 5, Y(y) + 4, y, "end")).join("")
    + text((LEFT + WIDTH) / 2, HEIGHT - 4, xlabel) + text(LEFT + 6, TOP + 2, ylabel, "start");
}

function table(head, rows) {
  return `<thead><tr>${head.map((h) => `<th scope="col">${h}</th>`).join("")}</tr></thead><tbody>`
    + rows.map(([first, ...rest]) => `<tr><th scope="row">${first}</th>${rest.map((c) => `<td>${c}</td>`).join("")}</tr>`)
      .join("") + "</tbody>";
}

function escaped(words) {
  return words.replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);
}

function drawClip() {
  const epsilon = +$("epsilon").value, ratio = +$("ratio").value, A = +document.querySelector("[name=A]:checked").value;
  const S = scales([0, 2], [-2, 2]), [X, Y] = S, xs = Array.from({ length: 201 }, (_, i) => i / 100);
  const clipped = clippedObjective(ratio, A, epsilon);
  $("clip-picture").innerHTML =
    `<rect class="band" x="${X(1 - epsilon)}" width="${X(1 + epsilon) - X(1 - epsilon)}" y="${TOP}" height="${HEIGHT - BOTTOM - TOP}"/>`
    + axes(S, [0, 0.5, 1, 1.5, 2], [-2, -1, 0, 1, 2], "ratio ρ", "objective")
    + line(xs.map((x) => [x, x * A]), S, "second") + line(xs.map((x) => [x, clippedObjective(x, A, epsilon)]), S, "first")
    + `<circle cx="${X(ratio)}" cy="${Y(clipped)}" r="5"/>`;
  const outside = A > 0 ? ratio > 1 + epsilon : ratio < 1 - epsilon;
  $("clip-says").textContent = `ρ A = ${signed(ratio * A)}, objective ${signed(clipped)}. ` + (outside
    ? "The token has been moved far enough: the gradient is 0."
    : "The gradient is A times that of ρ: the update still moves this token.");
}

function drawGae() {
  const lam = +$("lambda").value, { tokens, rewards, values } = data.response;
  const [advantages, , deltas] = gae(rewards, values, 1, lam);
  const largest = Math.max(...gae(rewards, values, 1, 1)[0].concat(deltas).map(Math.abs));
  const bar = (x) => {
    const length = (50 * Math.abs(x)) / largest;
    return `${signed(x)} <span class="bar ${x < 0 ? "below" : "above"}" style="--from:${x < 0 ? 50 - length : 50}%;--length:${length}%"></span>`;
  };
  $("gae-table").innerHTML = table(["token", "r", "V", "δ", "A"],
    tokens.map((token, t) => [escaped(token.trim()) || "␣", signed(rewards[t]), signed(values[t]), signed(deltas[t]), bar(advantages[t])]));
  const most = advantages.map(Math.abs), t = most.indexOf(Math.max(...most));
  $("gae-says").textContent = `λ = ${lam.toFixed(2)}: the largest advantage, ${signed(advantages[t])}, is that of “${tokens[t].trim()}”.`;
}

function drawOptimum() {
  const { words, ref, reward } = SIX, beta = 10 ** +$("beta").value, n = Math.round(10 ** +$("samples").value);
  const pi = optimum(ref, reward, beta), kl = exactKL(pi, ref), S = scales([0, words.length], [0, 1]), [X, Y] = S;
  const width = (X(1) - X(0)) / 3, column = (p, x, kind) =>
    `<rect class="${kind}" x="${x}" y="${Y(p)}" width="${width}" height="${Y(0) - Y(p)}"/>`;
  $("optimum-picture").innerHTML = axes(S, [], [0, 0.5, 1], "", "probability")
    + words.map((word, i) => column(ref[i], X(i + 0.5) - width, "hollow") + column(pi[i], X(i + 0.5), "full")
      + text(X(i + 0.5), HEIGHT - BOTTOM + 14, word)
      + text(X(i + 0.5), HEIGHT - BOTTOM + 27, pi[i].toFixed(3))).join("");
  const rows = Object.entries(sampledKL(pi, ref, n, seed)).map(([name, [mean, error]]) =>
    [name, mean.toFixed(3), error.toFixed(3), signed(mean - kl, 3)]);
  $("kl-table").innerHTML = table(["", "mean", "standard error", "off by"], [["exact KL", kl.toFixed(3), "", ""], ...rows]);
  $("beta-value").textContent = beta.toFixed(2);
  $("samples-value").textContent = n;
  $("optimum-says").textContent = `β = ${beta.toFixed(2)}: expected reward ${signed(sum(pi.map((p, i) => p * reward[i])))}, `
    + `KL ${kl.toFixed(3)} nats; reward − β KL ${signed(sum(pi.map((p, i) => p * reward[i])) - beta * kl)}.`;
}

function drawBest() {
  const n = +$("n").value, best = (m) => sum(data.drawn.map((scores) => expectedBest(scores, m))) / data.drawn.length;
  const points = Array.from({ length: 16 }, (_, i) => [bestOfNKL(i + 1), best(i + 1)]);
  const S = scales([0, 2], [0, 1.3]), [X, Y] = S, [kl, reward] = points[n - 1];
  $("best-picture").innerHTML = axes(S, [0, 0.5, 1, 1.5, 2], [0, 0.5, 1], "KL at most, nats", "reward, std of SFT's")
    + line(points, S, "first") + points.map(([x, y]) => `<circle class="small" cx="${X(x)}" cy="${Y(y)}" r="2.5"/>`).join("")
    + `<circle cx="${X(kl)}" cy="${Y(reward)}" r="6"/>`;
  $("best-says").textContent = `Best of ${n}: reward ${signed(reward)}, KL at most ${kl.toFixed(2)} nats, `
    + `${n} ${n === 1 ? "response" : "responses"} sampled for each answer.`
    + (n > 1 ? ` The last one of them raised the reward by ${(reward - points[n - 2][1]).toFixed(3)}.` : "");
}

let seed = 0;
const data = JSON.parse($("data").textContent);
$("gae-prompt").textContent = `Prompt: “${data.response.prompt}”. Score ${signed(data.response.score)}.`;
const draws = { clip: drawClip, gae: drawGae, optimum: drawOptimum, best: drawBest };
for (const [id, draw] of Object.entries(draws)) {
  $(id).addEventListener("input", draw);
  draw();
}
for (const id of ["epsilon", "ratio", "lambda", "n"]) {
  const show = () => ($(`${id}-value`).textContent = $(id).value);
  $(id).addEventListener("input", show);
  show();
}
$("again").addEventListener("click", () => {
  seed += 1;
  drawOptimum();
});
