"""Shortest paths in small graphs: which step is right shows only at the end, and an oracle that walks the path.

The prompt `ab bd ac cd de a>e` lists the edges of an undirected graph, in any order and direction, and then where to
go; a text such as `abde` names the nodes of a shortest path. Tasks of this kind are where writing from left to right
with the next word as the only aim fails: Bachmann and Nagarajan 2024, arXiv:2403.06963.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from manta.errors import DataError
from manta.text.example import Example
from manta.text.hashing import split_of
from manta.text.tasks.task import Task, Verdict

NODES = "abcdefgh"
"""Names of nodes."""
NUM_EDGES = 8
"""Edges of a drawn graph: a tree on all nodes and one more."""
LEAST_STEPS = 2
"""Steps of the nearest goal that is drawn."""
_PROMPT = re.compile(rf"(?:[{NODES}]{{2}} )+[{NODES}]>[{NODES}]")
_MAX_CHARACTERS = 3 * len(NODES) * (len(NODES) - 1) // 2 + 3


@dataclass(frozen=True)
class Puzzle:
    """A graph, a start and a goal.

    Args:
        edges: pairs of nodes, as the prompt has them.
        start: a node.
        goal: another node.
    """

    edges: tuple[str, ...]
    start: str
    goal: str

    @property
    def prompt(self) -> str:
        """The puzzle as a prompt, such as `ab bd ac cd de a>e`."""
        return f"{' '.join(self.edges)} {self.start}>{self.goal}"

    @property
    def key(self) -> str:
        """What puzzles have in common that differ in the order and direction of their edges only."""
        edges = tuple(sorted("".join(sorted(edge)) for edge in self.edges))
        return Puzzle(edges, self.start, self.goal).prompt

    @property
    def neighbours(self) -> dict[str, set[str]]:
        """Nodes that an edge joins to each."""
        found: dict[str, set[str]] = {node: set() for node in NODES}
        for left, right in self.edges:
            found[left].add(right)
            found[right].add(left)
        return found


def parse_prompt(prompt: str) -> Puzzle:
    """Reads a puzzle such as `ab bd ac cd de a>e`.

    Raises:
        DataError: the prompt has another form, an edge twice or from a node to itself, or no path to its goal.
    """
    if len(prompt) > _MAX_CHARACTERS or _PROMPT.fullmatch(prompt) is None:
        raise DataError(f"{prompt[:60]!r} is no graph with a start and a goal; write one as 'ab bd ac cd de a>e'")
    *edges, ends = prompt.split()
    puzzle = Puzzle(tuple(edges), ends[0], ends[2])
    undirected = [frozenset(edge) for edge in edges]
    if len(set(undirected)) < len(edges) or any(len(edge) == 1 for edge in undirected):
        raise DataError(f"{prompt[:60]!r} has an edge twice, or one from a node to itself")
    if puzzle.start == puzzle.goal or puzzle.goal not in distances(puzzle, puzzle.start):
        raise DataError(f"{prompt[:60]!r} has no path to its goal, or begins there")
    return puzzle


def distances(puzzle: Puzzle, start: str) -> dict[str, int]:
    """Steps from a node to each that can be reached from it, in order of their number."""
    found, neighbours = {start: 0}, puzzle.neighbours
    queue = [start]
    for node in queue:
        for other in sorted(neighbours[node] - found.keys()):
            found[other] = found[node] + 1
            queue.append(other)
    return found


def shortest(puzzle: Puzzle) -> str:
    """The shortest path; of several the first in alphabetical order."""
    left, neighbours = distances(puzzle, puzzle.goal), puzzle.neighbours
    path = puzzle.start
    while path[-1] != puzzle.goal:
        path += min(node for node in neighbours[path[-1]] if left[node] == left[path[-1]] - 1)
    return path


def check(prompt: str, text: str) -> Verdict:
    """Judges a text by walking along it.

    Args:
        prompt: a puzzle.
        text: any string; well formed are two or more names of nodes.

    Returns:
        The verdict; its errors are of `form`, `ends` (another start or goal), `edges` (a step that is no edge) and
        `length` (a shorter path exists).

    Raises:
        DataError: the prompt is no puzzle.
    """
    puzzle = parse_prompt(prompt)
    if not 2 <= len(text) <= len(NODES) or not set(text) <= set(NODES):
        return Verdict(False, False, None, ("form",))
    neighbours = puzzle.neighbours
    broken = {
        "ends": (text[0], text[-1]) != (puzzle.start, puzzle.goal),
        "edges": any(right not in neighbours[left] for left, right in pairwise(text)),
        "length": len(text) - 1 > distances(puzzle, puzzle.start)[puzzle.goal],
    }
    errors = tuple(name for name, wrong in broken.items() if wrong)
    return Verdict(True, not errors, None, errors)


def draw(rng: random.Random, split: str) -> Iterator[Example]:
    """Endless puzzles with their `shortest` path; the hash of `Puzzle.key` decides the split.

    A random tree (each node joins one that is there) and one more edge on eight nodes, with names, order and
    directions drawn. The number of steps is uniform over those from two on that the graph has from a drawn start.
    """
    while True:
        names = rng.sample(NODES, len(NODES))
        edges = {frozenset((names[i], names[rng.randrange(i)])) for i in range(1, len(names))}
        while len(edges) < NUM_EDGES:
            edges.add(frozenset(rng.sample(NODES, 2)))
        told = tuple("".join(rng.sample(sorted(edge), 2)) for edge in sorted(edges, key=sorted))
        told = tuple(rng.sample(told, len(told)))
        start = rng.choice(NODES)
        steps = distances(Puzzle(told, start, start), start)
        far = sorted({count for count in steps.values() if count >= LEAST_STEPS})
        if not far:
            continue
        count = rng.choice(far)
        puzzle = Puzzle(told, start, rng.choice([node for node in NODES if steps[node] == count]))
        if split_of(puzzle.key) == split:
            yield Example(text=shortest(puzzle), prompt=puzzle.prompt)


PATHS = Task(
    name="paths",
    symbols=f"{NODES}> ",
    prompt_length=3 * NUM_EDGES + len("a>e"),
    text_length=len(NODES),
    num_train=100_000,
    draw=draw,
    parse=parse_prompt,
    check=check,
)
