"""The tree edit distance has known values, and equals those of two libraries where they are installed."""

from __future__ import annotations

import random

import pytest

from vl2.eval.score.tree_edit import TreeNode, tree_distance


def tree(text: str) -> TreeNode[str]:
    """Parse `a(b,c(d))`."""
    root, stack = TreeNode(""), []
    stack.append(root)
    for char in text:
        if char == "(":
            stack.append(stack[-1].children[-1])
        elif char == ")":
            stack.pop()
        elif char != ",":
            stack[-1].children.append(TreeNode(char))
    return root.children[0]


def differ(a: str, b: str) -> float:
    return float(a != b)


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [
        ("a", "a", 0), ("a", "b", 1), ("a(b,c)", "a(b)", 1), ("a", "a(b(c))", 2), ("a(b,c)", "a(c,b)", 2),
        ("a(b(c))", "a(c)", 1), ("a(b(x,y),c)", "a(x,y,c)", 1),
        ("f(d(a,c(b)),e)", "f(c(d(a,b)),e)", 2),  # the example of Zhang and Shasha's paper
    ],
)  # fmt: skip
def test_known_distances(a: str, b: str, distance: float) -> None:
    assert tree_distance(tree(a), tree(b), differ) == distance
    assert tree_distance(tree(b), tree(a), differ) == distance


def test_costs_of_removing_and_inserting_are_those_given() -> None:
    a, b = tree("a(b)"), tree("a(c,d)")
    assert tree_distance(a, b, lambda one, other: 10.0 * (one != other), lambda _: 3.0, lambda _: 0.5) == 4.0


def random_tree(rng: random.Random) -> TreeNode[str]:
    root = TreeNode(rng.choice("abc"))
    nodes = [root]
    for _ in range(rng.randrange(12)):
        parent = rng.choice(nodes)
        nodes.append(TreeNode(rng.choice("abc")))
        parent.children.insert(rng.randint(0, len(parent.children)), nodes[-1])
    return root


def test_distances_are_those_of_apted_and_zss() -> None:
    apted, zss = pytest.importorskip("apted"), pytest.importorskip("zss")

    class Config(apted.Config):  # type: ignore[misc, name-defined]
        def rename(self, node1: TreeNode[str], node2: TreeNode[str]) -> float:
            return differ(node1.label, node2.label)

    def as_zss(node: TreeNode[str]) -> object:
        made = zss.Node(node.label)
        for child in node.children:
            made.addkid(as_zss(child))
        return made

    rng = random.Random(1)
    for _ in range(60):
        a, b = random_tree(rng), random_tree(rng)
        found = tree_distance(a, b, differ)
        assert found == apted.APTED(a, b, Config()).compute_edit_distance()
        assert found == zss.simple_distance(as_zss(a), as_zss(b))
