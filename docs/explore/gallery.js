// The gallery: prompts with the responses of four policies, each token coloured by its reward.
const byId = (id) => document.getElementById(id);
const signed = (x) => (x < 0 ? "−" : "+") + Math.abs(x).toFixed(2);

function element(name, text = "", className = "") {
  return Object.assign(document.createElement(name), { textContent: text, className });
}

// never so full that the text could not be read on it
function colour(reward) {
  return `rgba(var(--${reward > 0 ? "blue" : "orange"}), ${(0.5 * Math.min(Math.abs(reward) / 1.5, 1)).toFixed(2)})`;
}

function coloured({ tokens, prompt_tokens: promptTokens, ended }) {
  const line = element("dd");
  for (const [i, [text, reward]] of tokens.entries()) {
    const token = element("span", text, i < promptTokens ? "token prompt" : "token");
    token.style.background = colour(reward);
    token.dataset.reward = token.title = signed(reward);
    line.append(token);
  }
  if (!ended) line.append(element("em", " (cut off)"));
  return line;
}

const text = ({ tokens }) => tokens.map(([token]) => token).join("");
const entries = JSON.parse(byId("data").textContent).map((responses) => {
  const article = element("article"), list = element("dl"), { tokens, prompt_tokens: n } = responses.SFT;
  for (const [name, response] of Object.entries(responses)) {
    list.append(element("dt", `${name.replace("beta", "β")} ${signed(response.reward)}`), coloured(response));
  }
  article.append(element("h3", text({ tokens: tokens.slice(0, n) })), list);
  byId("texts").append(article);
  return [article, Object.values(responses).map(text).join("\n").toLowerCase()];
});

function search() {
  const wanted = byId("search").value.trim().toLowerCase();
  for (const [article, texts] of entries) article.hidden = !texts.includes(wanted);
  byId("found").textContent = `${entries.filter(([article]) => !article.hidden).length} of ${entries.length} prompts`;
}

byId("search").addEventListener("input", search);
byId("numbers").addEventListener("change", () => byId("responses").classList.toggle("numbers", byId("numbers").checked));
search();
