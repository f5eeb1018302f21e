"""The edit distance of ordered, labeled trees: the least cost of inserting, deleting and relabeling nodes.

Source: Zhang and Shasha 1989, SIAM Journal on Computing 18, 1245-1262. tests/eval/score/test_tree_edit.py compares it
with the packages apted and zss, where they are installed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Label = TypeVar("Label")


@dataclass(eq=False)
class TreeNode(Generic[Label]):
    label: Label
    children: list[TreeNode[Label]] = field(default_factory=list)

    def count(self) -> int:
        """Return the number of nodes of the tree."""
        return 1 + sum(child.count() for child in self.children)


def unit_cost(label: object) -> float:
    return 1.0


def tree_distance(
    a: TreeNode[Label],
    b: TreeNode[Label],
    relabel: Callable[[Label, Label], float],
    remove: Callable[[Label], float] = unit_cost,
    insert: Callable[[Label], float] = unit_cost,
) -> float:
    """Return the least cost of turning `a` into `b`.

    The time grows with the product of the sizes of both trees, and of the numbers of their nodes that have a left
    sibling. A table of n cells has a depth of two or three, and takes about n squared steps.
    """
    labels_a, leftmost_a, roots_a = _postorder(a)
    labels_b, leftmost_b, roots_b = _postorder(b)
    removal, insertion = [remove(label) for label in labels_a], [insert(label) for label in labels_b]
    distances = [[0.0] * len(labels_b) for _ in labels_a]  # of the subtrees that end at two nodes
    for i in roots_a:
        for j in roots_b:
            first_a, first_b = leftmost_a[i], leftmost_b[j]
            # forest[x][y]: the distance of the first x nodes of one subtree from the first y of the other
            forest = [[0.0] * (j - first_b + 2) for _ in range(i - first_a + 2)]
            for y in range(1, j - first_b + 2):
                forest[0][y] = forest[0][y - 1] + insertion[first_b + y - 1]
            for x in range(1, i - first_a + 2):
                node_a = first_a + x - 1
                above, row, begin_a = forest[x - 1], forest[x], leftmost_a[node_a]
                row[0] = above[0] + removal[node_a]
                before_a = forest[begin_a - first_a]
                for y in range(1, j - first_b + 2):
                    node_b = first_b + y - 1
                    best = min(above[y] + removal[node_a], row[y - 1] + insertion[node_b])
                    begin_b = leftmost_b[node_b]
                    if begin_a == first_a and begin_b == first_b:
                        kept = above[y - 1] + relabel(labels_a[node_a], labels_b[node_b])
                        row[y] = distances[node_a][node_b] = min(best, kept)
                    else:
                        row[y] = min(best, before_a[begin_b - first_b] + distances[node_a][node_b])
    return distances[-1][-1]


def _postorder(root: TreeNode[Label]) -> tuple[list[Label], list[int], list[int]]:
    """Return the labels in postorder, the index of each node's leftmost leaf, and the key roots.

    The key roots are the root and every node that has a left sibling, in ascending order.
    """
    labels: list[Label] = []
    leftmost: list[int] = []
    stack: list[tuple[TreeNode[Label], int, int]] = [(root, 0, -1)]  # node, next child, leftmost leaf
    while stack:
        node, child, first = stack.pop()
        if child < len(node.children):
            stack.append((node, child + 1, first if child else len(labels)))
            stack.append((node.children[child], 0, -1))
        else:
            leftmost.append(first if node.children else len(labels))
            labels.append(node.label)
    last = {leaf: index for index, leaf in enumerate(leftmost)}  # the highest node above each leftmost leaf
    return labels, leftmost, sorted(last.values())
