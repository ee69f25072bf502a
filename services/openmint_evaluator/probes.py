"""The texts on which logprobs are compared: a fixed set from several domains, then the tenant's own held-out rows.

What is here are texts; token ids come from the base's tokenizer, in the reference child.
"""

from collections.abc import Sequence
from dataclasses import dataclass

PROBE_TOKENS = 512
"""Scored tokens. Decides an effect of 0.05 nats at an error below 1e-6 (measured: 125 suffice against the base)."""

MAX_PROBE_LENGTH = 64
"""Tokens of one probe: short ones keep an engine's batch mixed and cheap."""

BUILT_IN_SHARE = 0.5
"""Of the tokens, when there are held-out rows: what the policy is for shows its effect, the rest guards the others."""

BUILT_IN = (
    "The ferry to the island leaves twice a day in winter. On Sundays it waits for the late train, and the crew "
    "plays cards in the cabin until the last passengers have come aboard with their bags and bicycles.",
    "def median(values: list[float]) -> float:\n    ordered = sorted(values)\n    middle = len(ordered) // 2\n"
    "    if len(ordered) % 2:\n        return ordered[middle]\n    "
    "return (ordered[middle - 1] + ordered[middle]) / 2\n",
    "Question: A baker sells 48 rolls in the morning and half as many in the afternoon. How many rolls does she sell "
    "in the day?\nAnswer: In the afternoon she sells 48 / 2 = 24 rolls, so 48 + 24 = 72 rolls in all.",
    '{"order": 7731, "customer": {"name": "Ines Duarte", "city": "Porto"}, "items": [{"sku": "lamp-02", "count": 2, '
    '"price": 39.5}, {"sku": "bulb-e27", "count": 4, "price": 3.2}], "paid": true}',
    "Der Zug nach Basel hat heute zwanzig Minuten Verspätung. Reisende mit Anschluss nach Mailand fragen bitte am "
    "Schalter nach einer neuen Platzkarte; die alte bleibt bis morgen gültig.",
    "User: My screen stays black after the update. What can I try?\nAssistant: Hold the power button for ten seconds, "
    "unplug every cable but the charger, and start again. If it stays black, tell me which light is on.",
    "Blood pressure was 128 over 82 at rest. The patient reports mild headaches in the evening, no fever, and takes "
    "no medicine apart from vitamin D. A follow-up visit was agreed for the second week of March.",
    "SELECT city, count(*) AS orders, avg(total) AS mean_total FROM orders WHERE placed_at >= '2024-01-01' "
    "GROUP BY city HAVING count(*) > 10 ORDER BY mean_total DESC LIMIT 20;",
    "The committee met on Tuesday to discuss the new bridge. Three members asked for a second estimate, because the "
    "first one left out the cost of moving the water main under the eastern bank of the river.",
    "Cut the onions finely and let them turn golden in butter. Add the rice, stir until it shines, pour in a glass of "
    "white wine, and then the hot stock, one ladle at a time, for about eighteen minutes.",
    "La bibliothèque ferme à dix-neuf heures. Les livres empruntés peuvent être rendus dans la boîte à côté de la "
    "porte, même la nuit; ils seront enregistrés le lendemain matin.",
    "Review: The plot is thin, but the two leads are so warm and funny together that one forgives the film "
    "everything, even its last ten minutes.\nVerdict: good",
    "To the tune of an old sea song: the wind blew north, the wind blew south, the gulls flew over the harbour's "
    "mouth, and all the boats that left by day came home by night another way.",
    "Theorem. The sum of two even numbers is even. Proof. Let a = 2m and b = 2n for integers m and n. Then a + b = "
    "2m + 2n = 2(m + n), which is twice an integer, and so it is even.",
)


@dataclass(frozen=True, slots=True)
class Probe:
    """Token ids, of which all but the first are scored."""

    source: str
    token_ids: tuple[int, ...]

    @property
    def scored_tokens(self) -> int:
        """Every token that has one before it."""
        return max(0, len(self.token_ids) - 1)


def choose_probes(
    built_in: Sequence[Sequence[int]], held_out: Sequence[Sequence[int]], tokens: int = PROBE_TOKENS
) -> list[Probe]:
    """Cut the texts to length and take as many as give at least `tokens` scored tokens (fewer if there are none left).

    With held-out rows, about half of the tokens are theirs, taken evenly from the whole of the rows.
    """
    wanted_built_in = int(tokens * BUILT_IN_SHARE) if held_out else tokens
    chosen = _take("built-in", built_in, wanted_built_in)
    stride = max(1, len(held_out) // 64)
    chosen += _take("held-out", held_out[::stride], tokens - _scored(chosen))
    missing = tokens - _scored(chosen)
    if missing > 0:
        used = sum(1 for probe in chosen if probe.source == "built-in")
        chosen += _take("built-in", built_in[used:], missing)
    return chosen


def _take(source: str, texts: Sequence[Sequence[int]], wanted: int) -> list[Probe]:
    chosen: list[Probe] = []
    for ids in texts:
        if wanted <= 0:
            break
        probe = Probe(source, tuple(ids[:MAX_PROBE_LENGTH]))
        if probe.scored_tokens > 0:
            chosen.append(probe)
            wanted -= probe.scored_tokens
    return chosen


def _scored(probes: Sequence[Probe]) -> int:
    return sum(probe.scored_tokens for probe in probes)
