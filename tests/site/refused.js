/** What an error says that `what` throws, or what it gives. */
export function refused(what) {
  try {
    return what() ?? "not refused";
  } catch (error) {
    return error.message;
  }
}
