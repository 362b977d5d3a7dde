"""A genetic search on sequences whose best one is known, and its operators one by one."""

import torch

from expunge.maths import genetic

HIDDEN = torch.tensor([7, 2, 9, 4, 11, 0, 5, 3])
ALLELES = torch.arange(12)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def wrong(population):
    """Genes that are not the hidden sequence's."""
    return (population != HIDDEN).sum(1).float()


def found(following, generations=250, size=40):
    """The best sequences of two populations, and the rows that were scored for each generation."""
    rows = []

    def score(populations):
        rows.append([len(p) for p in populations])
        return [wrong(p) for p in populations]

    first = [genetic.drawn(size, 8, ALLELES, seeded(seed)) for seed in (1, 2)]
    return genetic.minimised(score, first, generations, following), rows


def test_a_search_with_heredity_finds_the_hidden_sequence_and_one_without_does_not():
    draws = [seeded(3), seeded(4)]

    def bred(which, now, losses):
        parents = now[genetic.fittest(losses, 20)]
        family = torch.cat([parents, genetic.crossed(parents, 0.5, draws[which])])[:40]
        return genetic.mutated(family, 0.5, ALLELES, draws[which])

    best, rows = found(bred)
    assert [f.loss for f in best] == [0.0, 0.0]
    assert all(torch.equal(f.genes, HIDDEN) for f in best)
    assert len(rows) == 250
    assert max(max(row) for row in rows) == 40, "no generation is larger than the first"
    chance, _ = found(lambda which, now, losses: genetic.drawn(40, 8, ALLELES, draws[which]))
    assert min(f.loss for f in chance) > 0


def test_what_was_best_is_kept_though_later_generations_are_worse():
    worse = [torch.full((2, 8), 1), torch.full((2, 8), 2)]
    first = torch.stack([HIDDEN, HIDDEN.clamp(max=4)])
    (best,) = genetic.minimised(lambda p: [wrong(p[0])], [first], 3, lambda *_: worse.pop())
    assert (best.loss, worse) == (0.0, [])
    assert torch.equal(best.genes, HIDDEN)


def test_the_best_go_on_best_first():
    assert genetic.fittest(torch.tensor([3.0, 1.0, 2.0, 1.0, 9.0]), 3).tolist() == [1, 3, 2]
    assert genetic.fittest(torch.tensor([3.0]), 3).tolist() == [0]


def test_children_of_a_pair_have_each_gene_of_both_once():
    parents = torch.arange(6)[:, None].repeat(1, 5)  # row i is all i
    children = torch.cat([genetic.crossed(parents, 1.0, seeded(seed)) for seed in range(40)]).tolist()
    cuts = set()
    for n, (one, other) in enumerate(zip(children[::2], children[1::2], strict=True)):
        mother, father = n % 6, one[-1]
        cut = one.index(father) if father != mother else None
        if cut is not None:
            assert one == [mother] * cut + [father] * (5 - cut)
            assert other == [father] * cut + [mother] * (5 - cut)
            cuts.add(cut)
    assert cuts == {0, 1, 2, 3, 4}
    assert genetic.crossed(parents, 0.0, seeded()).shape == (0, 5)
    pairs = len(genetic.crossed(parents.repeat(20, 1), 0.5, seeded())) / 2
    assert 35 < pairs < 85, "about half of 120 parents"


def test_a_mutation_draws_one_gene_anew_in_about_as_many_rows_as_its_rate():
    before = torch.zeros(400, 5, dtype=torch.long)
    after = genetic.mutated(before, 0.25, torch.tensor([7, 8]), seeded())
    assert before.sum() == 0
    changed = (after != 0).sum(1)
    assert set(changed.tolist()) == {0, 1}
    assert 70 < int(changed.sum()) < 130
    assert set(after.flatten().tolist()) == {0, 7, 8}
    assert bool((after != 0).any(0).all()), "any place"
    assert torch.equal(genetic.mutated(before, 0.0, torch.tensor([7]), seeded()), before)
