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

function bare(movie) {
  const ending = ` (${movie.year})`;
  return movie.year !== null && movie.title.endsWith(ending) ? movie.title.slice(0, -ending.length) : movie.title;
}

function row(rank, movie, detail) {
  const line = element("li");
  line.append(element("span", "rank", rank));
  const title = element("span", "title", bare(movie));
  if (movie.year !== null) title.append(element("span", "year", ` ${movie.year}`));
  line.append(title);
  line.append(element("span", "detail", detail));
  return line;
}

function stars(rating) {
  return "★".repeat(Math.floor(rating)) + (rating % 1 ? "½" : "");
}

function rater(movie) {
  const box = element("fieldset", "rate");
  box.setAttribute("aria-label", `Rate ${movie.title}`);
  for (let rating = 1; rating <= 5; rating += 1) {
    const button = element("button", "", "★");
    button.type = "button";
    button.title = `${rating} of 5`;
    button.setAttribute("aria-label", `${rating} of 5 stars`);
    button.addEventListener("click", () => rate(movie, rating));
    box.append(button);
  }
  return box;
}

const sourceNames = { two_tower: "two-tower", ease: "EASE", covisitation: "co-visitation", popularity: "popularity" };
const partNames = { user_state: "the user’s history", ranking: "ranking", retrieval: "retrieval" };

async function show(user, k) {
  const id = encodeURIComponent(user);
  const path = `/v1/users/${id}/recommendations?k=${encodeURIComponent(k)}`;
  const [history, answer] = await Promise.all([ask(`/v1/users/${id}/history?n=${encodeURIComponent(k)}`), ask(path)]);
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
  at("items").replaceChildren(...answer.items.map((movie) => {
    const found = movie.sources.map((name) => sourceNames[name] || name).join(", ");
    const line = row(movie.rank, movie, movie.genres.join(" · ") + (found ? ` — found by ${found}` : ""));
    line.append(rater(movie));
    return line;
  }));
  at("items-note").textContent =
    `${answer.cold_start ? "A newcomer’s list" : "None of them rated before"}, in ${answer.timings_ms.total.toFixed(1)} ms.`;
  at("answer").hidden = false;
  at("json").href = path;
  at("json").textContent = path;
  const without = answer.degraded.map((part) => partNames[part] || part);
  notice(without.length ? `This answer had to do without ${without.join(" and ")}.` : "");
}

async function submit() {
  const user = at("user").value.trim();
  history.replaceState(null, "", `?user=${encodeURIComponent(user)}&k=${encodeURIComponent(at("k").value)}`);
  try {
    await show(user, at("k").value);
  } catch (error) {
    notice(error.message);
  }
}

async function rate(movie, rating) {
  try {
    const user = at("user").value.trim();
    await ask("/v1/events", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ user_id: Number(user), movie_id: movie.movie_id, rating }),
    });
    await submit();
  } catch (error) {
    notice(error.message);
  }
}

function card(model) {
  const line = at("model");
  line.replaceChildren("Data: ", element("strong", "", model.dataset.label), `, ${model.n_movies.toLocaleString("en")} movies. `);
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
if (/^[0-9]{1,19}$/.test(asked.get("user") || "")) at("user").value = asked.get("user");
if ([...at("k").options].some((option) => option.value === asked.get("k"))) at("k").value = asked.get("k");
at("ask").addEventListener("submit", (event) => { event.preventDefault(); submit(); });
begin();
