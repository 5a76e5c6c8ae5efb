"""From a checked request to an answer: routes, uncertain answers, questions to people."""
