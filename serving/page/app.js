// The page: a user's recent history beside the recommendations, from the same API that everybody uses.
// Titles and genres are data of others: everything is put in as text, never as markup.
"use strict";

const at = (id) => document.getElementById(id);

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

async function ask(path, options) {
  const response = await fetch(path, options);
  const body = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(body.detail || `${path} answered ${response.status}`);
  return body;
}

function notice(text) {
  at("notice").textContent = text;
  at("notice").hidden = !text;
}

function bare(item) {
  const ending = ` (${item.year})`;
  return item.year !== null && item.title.endsWith(ending) ? item.title.slice(0, -ending.length) : item.title;
}

function row(rank, item, detail) {
  const line = element("li");
  line.append(element("span", "rank", rank));
  const title = element("span", "title", bare(item));
  if (item.year !== null) title.append(element("span", "year", ` ${item.year}`));
  line.append(title);
  line.append(element("span", "detail", detail));
  return line;
}

function stars(rating) {
  return "★".repeat(Math.floor(rating)) + (rating % 1 ? "½" : "");
}

function rater(item) {
  const box = element("fieldset", "rate");
  box.setAttribute("aria-label", `Rate ${item.title}`);
  for (let rating = 1; rating <= 5; rating += 1) {
    const button = element("button", "", "★");
    button.type = "button";
    button.title = `${rating} of 5`;
    button.setAttribute("aria-label", `${rating} of 5 stars`);
    button.addEventListener("click", () => rate(item, rating));
    box.append(button);
  }
  return box;
}

const retrieverNames = {
  two_tower: "two-tower", ease: "EASE", ials: "iALS", item_knn: "item-kNN", covisitation: "co-visitation", popularity: "popularity",
};
const partNames = {
  user_state: "the user’s newest history", ranking: "ranking", retrieval: "retrieval", explain: "the numbers behind “why”",
};

function chance(item) {
  const line = element("span", "chance");
  const meter = element("meter");
  meter.value = item.like_probability;
  meter.setAttribute("aria-hidden", "true");
  const like = `${Math.round(100 * item.like_probability)} % would like it`;
  line.append(meter, `${like}, ${(100 * item.watch_probability).toFixed(1)} % watch it next`);
  return line;
}

function why(explanation) {
  const list = element("ul", "why");
  list.append(...explanation.reasons.map((reason) => element("li", "", reason.text)));
  return list;
}

function how(explanation) {
  const more = element("details", "how");
  const ranks = [`place ${explanation.merged_rank} after retrieval`];
  if (explanation.ranked_rank !== null) ranks.push(`${explanation.ranked_rank} after ranking`);
  more.append(element("summary", "", ranks.join(", ")));
  const table = element("table");
  const add = (name, value, part) => {
    const line = element("tr");
    line.append(element("td", "", name), element("td", "", value), element("td", "", part));
    table.append(line);
  };
  const signed = (x) => (x < 0 ? "−" : "+") + Math.abs(x).toFixed(3);
  for (const found of explanation.found_by) add(`found by ${retrieverNames[found.retriever] || found.retriever}`, `at place ${found.rank}`, "");
  for (const part of explanation.contributions || []) {
    add(part.feature.replaceAll("_", " "), part.value === null ? "unknown" : part.value.toFixed(3), signed(part.contribution));
  }
  if (explanation.contributions) {
    add("everything else", "", signed(explanation.other_contributions));
    add("start of every score", "", signed(explanation.bias));
  }
  more.append(table);
  return more;
}

function recommended(item) {
  const found = item.retrievers.map((name) => retrieverNames[name] || name).join(", ");
  const line = row(item.rank, item, item.genres.join(" · ") + (found ? ` — found by ${found}` : ""));
  line.append(rater(item));
  if (item.like_probability !== null) line.append(chance(item));
  if (item.explanation) line.append(why(item.explanation), how(item.explanation));
  return line;
}

const choices = ["k", "genre", "year_from", "year_to", "diversity"];

function wanted() {
  const query = new URLSearchParams();
  for (const name of choices) {
    const value = at(name).value.trim();
    if (value && !(name === "diversity" && value === "0")) query.set(name, value);
  }
  if (at("explain").checked) query.set("explain", "true");
  return query;
}

let next = null; // path of the next page of what is shown
let asking = 0; // answers to what was asked before are not shown

function page(answer, path) {
  at("items").append(...answer.items.map(recommended));
  next = answer.next_cursor && `${path}?k=${encodeURIComponent(at("k").value)}&cursor=${encodeURIComponent(answer.next_cursor)}`;
  at("more").hidden = !next;
  const without = answer.degraded.map((part) => partNames[part] || part);
  notice(without.length ? `This answer had to do without ${without.join(" and ")}.` : "");
}

async function show(user) {
  const mine = (asking += 1);
  const id = encodeURIComponent(user);
  const path = `/v1/users/${id}/recommendations`;
  const query = wanted();
  const asked = `${path}?${query}`;
  query.set("paginate", "true");
  const [history, answer] = await Promise.all([ask(`/v1/users/${id}/history?n=20`), ask(`${path}?${query}`)]);
  if (mine !== asking) return;
  at("history").replaceChildren(...history.events.map((event) => {
    const day = new Date(event.timestamp * 1000).toISOString().slice(0, 10);
    const line = row("", event, [...event.genres, day].join(" · "));
    const given = element("span", "given", stars(event.rating));
    given.setAttribute("aria-label", `${event.rating} stars`);
    line.insertBefore(given, line.lastChild);
    return line;
  }));
  at("history-note").textContent = history.n_events === 0
    ? `User ${user} has rated nothing yet.`
    : `User ${user}: ${history.n_events} ratings, newest first.`;
  at("items").replaceChildren();
  page(answer, path);
  at("items-note").textContent = answer.items.length === 0
    ? "Nothing passes these filters."
    : `${answer.cold_start ? "A newcomer’s list" : "None of them rated before"}, in ${answer.timings_ms.total.toFixed(1)} ms.`;
  at("answer").hidden = false;
  at("json").href = asked;
  at("json").textContent = asked;
}

async function more() {
  const mine = asking;
  try {
    const answer = await ask(next);
    if (mine === asking) page(answer, next.split("?")[0]);
  } catch (error) {
    notice(error.message);
  }
}

async function submit() {
  const user = at("user").value.trim();
  const shown = wanted();
  shown.set("user", user);
  history.replaceState(null, "", `?${shown}`);
  try {
    await show(user);
  } catch (error) {
    notice(error.message);
  }
}

async function rate(item, rating) {
  try {
    const user = at("user").value.trim();
    await ask("/v1/events", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ user_id: Number(user), item_id: item.item_id, rating }),
    });
    await submit();
  } catch (error) {
    notice(error.message);
  }
}

function card(model) {
  const line = at("model");
  line.replaceChildren("Data: ", element("strong", "", model.dataset.label), `, ${model.n_items.toLocaleString("en")} movies. `);
  if (model.ndcg_at_10) {
    const { mean, low, high } = model.ndcg_at_10;
    line.append("Measured NDCG@10 ", element("strong", "", mean.toFixed(4)));
    if (low !== null && high !== null) line.append(` (95 % interval ${low.toFixed(4)}–${high.toFixed(4)})`);
    line.append(` on the last tenth of the events, which ${model.role === "production" ? "its frozen sibling" : "it"} had not seen. `);
  } else {
    line.append("Its quality was not measured. ");
  }
  line.append(`Version ${model.version}, trained through ${model.trained_through_utc.slice(0, 10)}.`);
  at("synthetic").hidden = !model.dataset.synthetic;
  at("genre").replaceChildren(new Option("any", ""), ...model.genres.map((name) => new Option(name, name)));
  if (model.genres.includes(asked.get("genre"))) at("genre").value = asked.get("genre");
  document.title = `Recommendations – ${model.dataset.label}`;
}

async function begin() {
  try {
    card(await ask("/v1/model"));
    await submit();
  } catch (error) { // still loading, most likely
    at("model").textContent = "";
    notice(error.message);
    setTimeout(begin, 3000);
  }
}

const asked = new URLSearchParams(location.search);
if (/^[0-9]{1,16}$/.test(asked.get("user") || "")) at("user").value = asked.get("user");
if ([...at("k").options].some((option) => option.value === asked.get("k"))) at("k").value = asked.get("k");
for (const name of ["year_from", "year_to", "diversity"]) if (asked.has(name)) at(name).value = asked.get(name);
if (asked.has("user")) at("explain").checked = asked.has("explain");
const variety = () => { at("diversity-shown").textContent = at("diversity").value; };
variety();
at("diversity").addEventListener("input", variety);
at("ask").addEventListener("submit", (event) => { event.preventDefault(); submit(); });
for (const name of ["k", "genre", "diversity", "explain"]) at(name).addEventListener("change", submit);
at("more").addEventListener("click", more);
begin();
