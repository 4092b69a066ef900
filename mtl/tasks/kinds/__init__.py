"""The kinds of task, a file for each: ``KINDS`` has their classes by name."""

from mtl.tasks.kinds.base import Kind
from mtl.tasks.kinds.contrastive import Contrastive
from mtl.tasks.kinds.distillation import Distillation
from mtl.tasks.kinds.few_shot import FewShot
from mtl.tasks.kinds.multi_label import MultiLabel
from mtl.tasks.kinds.regression import Regression
from mtl.tasks.kinds.relevance import Relevance
from mtl.tasks.kinds.similarity import Similarity
from mtl.tasks.kinds.single_label import SingleLabel
from mtl.tasks.kinds.tokens import Tokens

ALL: tuple[type[Kind], ...] = (
    SingleLabel, MultiLabel, Regression, Relevance, Tokens, Similarity, FewShot, Contrastive, Distillation
)  # fmt: skip
KINDS = {kind.name: kind for kind in ALL}
