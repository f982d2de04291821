/** Calls of the server, and their errors in words. The key travels in the Authorization header and nowhere else. */

export class ApiError extends Error {
  /**
   * @param {number} status 0 when there was no answer
   * @param {string} message the server's own words
   * @param {{code?: string|null, param?: string|null, retryAfterS?: number|null}} [details]
   */
  constructor(status, message, details = {}) {
    super(message);
    this.name = "ApiError";
    this.status = status;
    this.code = details.code ?? null;
    this.param = details.param ?? null;
    this.retryAfterS = details.retryAfterS ?? null;
  }
}

/**
 * Sends a request and returns the response if it is good.
 * @param {string} path
 * @param {{key?: string|null, body?: unknown, signal?: AbortSignal}} [options] with a body it is a POST
 * @returns {Promise<Response>}
 * @throws {ApiError} and what fetch throws when it is aborted
 */
export async function call(path, { key = null, body, signal } = {}) {
  const headers = new Headers();
  if (key) {
    headers.set("Authorization", `Bearer ${key}`);
  }
  if (body !== undefined) {
    headers.set("Content-Type", "application/json");
  }
  let response;
  try {
    response = await fetch(path, {
      method: body === undefined ? "GET" : "POST",
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
      credentials: "omit",
      redirect: "error",
      cache: body === undefined ? "no-cache" : "no-store",
    });
  } catch (error) {
    if (isAbort(error)) {
      throw error;
    }
    throw new ApiError(0, "There was no answer.");
  }
  if (response.ok) {
    return response;
  }
  throw await errorOf(response);
}

/** The same, and reads the JSON of the answer. */
export async function callJson(path, options) {
  return (await call(path, options)).json();
}

/** @param {unknown} error */
export function isAbort(error) {
  return error instanceof DOMException && error.name === "AbortError";
}

/** @param {any} body an error event of a stream */
export function errorOfEvent(body) {
  const error = body.error ?? {};
  return new ApiError(500, String(error.message ?? "The answer broke off."), { code: error.code, param: error.param });
}

async function errorOf(response) {
  let error = {};
  try {
    error = (await response.json()).error ?? {};
  } catch {
    // Not ours: a proxy's page, for example.
  }
  const retryAfterS = Number.parseFloat(response.headers.get("Retry-After") ?? "");
  return new ApiError(response.status, String(error.message ?? response.statusText), {
    code: error.code,
    param: error.param,
    retryAfterS: Number.isFinite(retryAfterS) ? retryAfterS : null,
  });
}

/**
 * An error as the page shows it: what happened, and what can be done.
 * @param {unknown} error
 * @returns {{title: string, detail: string, needsKey: boolean}}
 */
export function explain(error) {
  if (!(error instanceof ApiError)) {
    return { title: "Something in this page failed", detail: String(error), needsKey: false };
  }
  const said = error.message;
  const wait = error.retryAfterS === null ? "in a moment" : `in ${Math.max(1, Math.ceil(error.retryAfterS))} s`;
  switch (true) {
    case error.status === 0:
      return {
        title: "The server cannot be reached",
        detail: "There was no answer. Check that it is running and that you are online, then try again.",
        needsKey: false,
      };
    case error.status === 401:
      return {
        title: "The server does not know this key",
        detail: "Enter an API key of this deployment. Its operator makes keys with: spyglass keys create",
        needsKey: true,
      };
    case error.status === 403:
      return { title: "This key may not do that", detail: said, needsKey: true };
    case error.status === 429 && error.code === "insufficient_quota":
      return { title: "This key has spent its money", detail: said, needsKey: true };
    case error.status === 429:
      return { title: `Too much at once: try again ${wait}`, detail: said, needsKey: false };
    case error.status === 503:
      return { title: `The model is not available: try again ${wait}`, detail: said, needsKey: false };
    case error.status === 504 || error.status === 408:
      return { title: "It took too long", detail: said, needsKey: false };
    case error.status === 413:
      return { title: "The request is too large", detail: said, needsKey: false };
    case error.status >= 500:
      return { title: "The server failed", detail: said, needsKey: false };
    default: {
      const place = error.param ? ` (${error.param})` : "";
      return { title: "The server refused the request", detail: said + place, needsKey: false };
    }
  }
}
