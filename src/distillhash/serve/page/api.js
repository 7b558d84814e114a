// Calls of the server. Every failure becomes a Failure with words for people.

export class Failure extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

async function call(method, path, { body, headers, signal } = {}) {
  let answer;
  try {
    answer = await fetch(path, { method, body, headers, signal, credentials: "same-origin" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure(0, "The server does not answer. Is it still running?");
  }
  if (answer.ok) return answer.status === 204 ? null : answer.json();
  let detail = `The server answered ${answer.status}.`;
  try {
    detail = (await answer.json()).detail || detail;
  } catch {
    // not a problem document: a proxy's page, perhaps
  }
  throw new Failure(answer.status, detail);
}

export const statistics = () => call("GET", "stats");
export const quality = () => call("GET", "quality");
export const item = (id, signal) => call("GET", `items/${id}`, { signal });
export const sample = (n, seed) => call("GET", `items?sample=${n}&seed=${seed}`).then((found) => found.items);
let by = ""; // the ranking, once it was chosen
export const rankBy = (ranking) => { by = `&by=${ranking}`; };
export const searchItem = (id, k, signal) => call("POST", `search?id=${id}&k=${k}${by}`, { signal });
export const searchCode = (code, k, signal) => call("POST", `search?code=${code}&k=${k}${by}`, { signal });
export const searchText = (text, k, signal) => call("POST", `search?text=${encodeURIComponent(text)}&k=${k}${by}`, { signal });
export const access = () => call("GET", "session");
export const signIn = (token) => call("POST", "session", { headers: { authorization: `Bearer ${token}` } });

export function searchFile(file, k, signal) {
  const body = new FormData();
  body.append("file", file, file.name || "picture");
  return call("POST", `search?k=${k}${by}`, { body, signal });
}

export function duplicates(radius, offset, limit, signal) {
  const chosen = radius === null ? "" : `&radius=${radius}`;
  return call("GET", `duplicates?offset=${offset}&limit=${limit}${chosen}`, { signal });
}

export const thumbnail = (id) => `items/${id}/thumbnail`;
export const picture = (id) => `items/${id}/image`;
