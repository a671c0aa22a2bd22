// The server's addresses. What goes wrong is an Error with the server's own words.

async function ask(path, options = {}) {
  const response = await fetch(`/api${path}`, options);
  if (!response.ok) {
    const problem = await response.json().catch(() => ({}));
    throw new Error(problem.detail ?? `The server answered ${response.status}.`);
  }
  return response;
}

async function json(path, method = "GET", body = undefined, signal = undefined) {
  const options = { method, signal };
  if (body !== undefined) {
    options.body = JSON.stringify(body);
    options.headers = { "content-type": "application/json" };
  }
  return (await ask(path, options)).json();
}

export const api = {
  model: () => json("/model"),
  images: () => json("/images"),
  image: (id) => json(`/images/${id}`),
  add: async (file) => (await ask(`/images?name=${encodeURIComponent(file.name)}`, { method: "POST", body: file })).json(),
  pictureUrl: (id, side) => `/api/images/${id}/picture${side ? `?side=${side}` : ""}`,
  prepare: (id, signal) => json(`/images/${id}/prepare`, "POST", undefined, signal),
  masks: (id, question, signal) => json(`/images/${id}/masks`, "POST", question, signal),
  objects: async (id) => (await json(`/images/${id}/objects`)).objects,
  keep: (id, objects) => json(`/images/${id}/objects`, "PUT", { objects }),
  everything: (id, settings) => json(`/images/${id}/everything`, "POST", settings),
  job: (id) => json(`/jobs/${id}`),
  stop: (id) => json(`/jobs/${id}`, "DELETE"),
  exportUrl: (kind, id) => (id ? `/api/images/${id}/export/${kind}` : `/api/export/${kind}`),
};
