// What comes first in a search: pages whose title has the word, and pages that say how to do something.
var Scorer = {
  score: ([page, title, anchor, description, score, file, kind]) => {
    if (page === "changelog") return score - 12;
    if (page === "reference" && kind === "text") return score - 6;
    if (page === "tutorial" || page.startsWith("how-to/")) return score + 3;
    return score;
  },
  objNameMatch: 11,
  objPartialMatch: 4,
  objPrio: { 0: 5, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 25,
  partialTitle: 10,
  term: 5,
  partialTerm: 2,
};
