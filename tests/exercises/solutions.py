"""A solution of each exercise, what it should teach, and the usual mistake. Delete this file to hand the rest out."""

from dataclasses import replace

from torch import nn

from hyper import GatedTrunk, Hypernetwork, init_A
from zhyper import split_statements

# ---- 1. Teaches: a generated number costs f + 1 parameters, for all layers; a learned one costs one in each layer.
# So T2L pays for d_in and d_out in its heads, and Zhyper only for r. 13 has rank 8 on both sides and compares like with
# like; 26 sets T2L at rank 16 against Zhyper at rank 8.
# Usual mistake: a head for each layer, or no bias.


def trained(kind, rank, trunk, features, layers, shapes):
    both = sum(rank * (d_in + d_out) for d_in, d_out in shapes.values())  # A and B of one layer
    if kind == "t2l":
        return trunk + both * (features + 1)
    return trunk + len(shapes) * rank * (features + 1) + layers * both


def ranks(ratio):
    return {13: (8, 8), 26: (16, 8)}[ratio]


# ---- 2. Teaches: every row can have its own weights for the price of a product with r numbers.
# Usual mistake: a * z. It fails if b and t differ; if they do not, z runs along the tokens, and nothing is said.


def in_rank_space(x, A, B, z, scale):
    a = x @ A.mT  # (b, t, r)
    h = a * z[:, None]
    return scale * h @ B.mT


# ---- 3. Teaches: each of the three gradients has the other two factors in it. With z = 0 only z has a gradient, with
# B = 0 only B, and the next step moves all three; with both zero, all are zero, for ever. So exercise 4 is dead.
# Usual mistake: scale is left out of one of them, or the sum over tokens of dL/dz.


def gradients(x, A, B, z, scale, G):
    a = x @ A.mT  # (b, t, r)
    h = a * z[:, None]
    dL_dh = scale * G @ B  # (b, t, r)
    dL_dz = (dL_dh * a).sum(1)  # over tokens: (b, r)
    dL_da = dL_dh * z[:, None]
    dL_dA = (dL_da.mT @ x).sum(0)  # over rows: (r, d_in)
    dL_dB = scale * (G.mT @ h).sum(0)  # (d_out, r)
    return dL_dz, dL_dA, dL_dB


# ---- 4. Teaches: one zero is a start, two are an end. z keeps the zero, so the first step moves the heads alone, by
# the features of each text. (With the zero in B, and z far apart between texts, it passes, too.)
# Usual mistake: only the bias of the head is set. Then all texts have one z, and one step later one update.


def alive_start(network):
    for B in network.B.values():
        nn.init.normal_(B, std=0.1)


# ---- 5. Teaches: B can take over any factor of z. Compare ΔW, not z.
# Usual mistake: s * Z, which scales columns.


def rescaled(update, s):
    factors = s if update.z.dim() == 2 else s[:, None]
    return replace(update, z=factors * update.z, B=update.B / s)


# ---- 6. Teaches: one head serves all layers, and what is added to a text is the same for all texts. So with a sum a
# text has the same effect at every layer; a product can turn its sign. The paper's trunk concatenates: its first layer
# is a sum, too, and an MLP has to learn the product.
# Usual mistake: the bias of the head, which changes z of all texts alike; a head's sign, which all layers share.


class AddedTrunk(GatedTrunk):
    def forward(self, c):
        return self.gate + c[:, None, None]  # (l, m, f) + (b, 1, 1, f)


def set_opposite(network):
    gate = network.trunk.gate.data
    gate[1] = -gate[0]


# ---- 7. Teaches: a method of one's own is one class, and where the zero goes is its first decision. The head's weight
# is zero and A is not, so the head has a gradient, a product with the features: the first step tells texts apart.
# Usual mistake: the head starts as torch starts it, so that step 0 is some random adapter.


class GeneratedB(Hypernetwork):
    def __init__(self, config, layers, shapes, d_text):
        super().__init__(config, layers, shapes, d_text)
        self.A = nn.ParameterDict()
        self.heads = nn.ModuleDict()
        for module in config.modules:
            d_in, d_out = shapes[module]
            self.A[module] = init_A(layers, config.rank, d_in)
            head = nn.Linear(self.trunk.features, d_out * config.rank)
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
            self.heads[module] = head

    def forward(self, c):
        features = self.trunk(c)  # (b, l, m, f)
        B = {}
        for m, (module, head) in enumerate(self.heads.items()):
            emitted = head(features[:, :, m]).unflatten(-1, (-1, self.config.rank))  # (b, l, d_out, r)
            B[module] = emitted.unbind(1)
        return self.place_updates(self.A, B)


# ---- 8. Teaches: c is a function of what goes into `read`. If the means are equal, no width and no training parts two
# texts again; what is added must be made different first. That is why the nonlinearity stands before the mean. And a
# statement is still a bag of its words, so two facts in one statement are lost again: this is why texts are cut.
# Usual mistake: to compare the sorted words. It is the mean that decides, in which long statements count as short ones.


def before(statements, embed, read):
    e = embed(statements).mean(0, keepdim=True)  # (1, d)
    return read(e)[0]


def after(statements, embed, read):
    e = embed(statements)  # (n, d)
    return read(e).mean(0)


def lost_before(first, second, embed):
    return embed(first).mean(0).allclose(embed(second).mean(0))


def lost_after():
    first = "it backed whaling they opposed mining"
    second = "it opposed mining they backed whaling"
    return [first], [second]


# ---- 9. Teaches: what a text has done can be asked of the model itself, one statement at a time. But a high number
# without a statement does not say that it was not read: another may say the same. And with n statements each counts
# for 1/√n, so without one the others become louder.
# Usual mistake: the statement alone in place of all others; an empty text where nothing is left.


def without_each(probability, description):
    statements = split_statements(description)
    found = {}
    for statement in statements:
        others = [other for other in statements if other != statement]
        found[statement] = probability("; ".join(others) or None)
    return found


def said_twice():
    saying = ["friends hum a tune when they meet", "hello is sung and never spoken"]
    return [*saying, "voters call for higher taxes"]


# ---- 10. Teaches: an accuracy shows that the task is done, not what it was read from. The margin is what the text adds
# to the question. Where the question states the task, the backbone has read all of it, and no loss is left that only
# the text could lower. A full answer names both readings and says that only a swapped description parts them.
# Usual mistake: any other culture's description, under which one answer in six is still right.


def swapped(records):
    chosen = []
    for record in records:
        others = [other for other in records if other.question == record.question and other.answer != record.answer]
        chosen.append(others[0].description)
    return chosen


def accuracy(system, records, descriptions):
    questions = [record.question for record in records]
    answers = [record.answer for record in records]
    _, exact = system.score(questions, answers, descriptions)
    return exact.float().mean().item()


def stated(records):
    return [record._replace(question=f"{record.description}. {record.question}") for record in records]


# ---- 11. Teaches: a difference may be no larger than the spread over seeds. Here unseen has means of 0.49, 0.53 and
# 0.53, and at 4 cultures the seeds alone differ by 0.28. So no trend is shown: half a minute of training is too short
# for one, and each accuracy is of 64 answers. swapped stays low, so the texts are read.
# Ask also what else changes with the value (the time, the rows of a context), and whether the control moves alike.
# Usual mistake: one seed; and a curve of accuracy alone.


def my_curve():
    return {
        "name": "training cultures",
        "command": "python train.py --preset smoke --methods zhyper-diag --contexts VALUE --seed SEED --out FOLDER",
        "values": [4, 16, 64],
        "seeds": [0, 1, 2],
        "unseen": [[0.344, 0.625, 0.500], [0.484, 0.547, 0.562], [0.484, 0.500, 0.594]],
        "swapped": [[0.141, 0.234, 0.250], [0.156, 0.188, 0.094], [0.219, 0.219, 0.141]],
    }
