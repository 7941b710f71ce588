"""`torch.export` of the support prior and of a whole PFENet; what keeps CyCTR from it."""

import pytest
import torch
from torch import nn

from celp_nb.conditioning import Features, SupportFeatures, foreground_vectors, support_prior
from celp_nb.contrast import FewShotModel
from celp_nb.cyctr import CyCTR
from celp_nb.ops import soft_mask
from celp_nb.pfenet import PFENet

SIDE = 5  # positions, of maps; 33 pixels


def features(*shape, seed=0, kind=Features):
    g = torch.Generator().manual_seed(seed)
    sizes = (12, 10, 10)[: len(kind._fields)]
    return kind(*(torch.randn(*shape, c, SIDE, SIDE, generator=g) for c in sizes))


def masks(*shares, seed=1):
    "Masks (2, 2, 33, 33) uint8 with these shares of foreground."
    noise = torch.rand(4, 33, 33, generator=torch.Generator().manual_seed(seed))
    return (noise < torch.tensor(shares)[:, None, None]).byte().unflatten(0, (2, 2))


#: few, none, all, and half: each gives another number of foreground vectors than the exported one
OTHERS = [masks(0.1, 0.1, 0.1, 0.1, seed=3), masks(0, 1, 0.5, 0.003)]


class Prior(nn.Module):
    def forward(self, query, support, mask): return support_prior(query, support, mask)


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_prior_gives_the_same_bits_for_other_masks(strict):
    inputs = features(2).high, features(2, 2, seed=1).high, masks(0.2, 0.2, 0.3, 0.4)
    exported = torch.export.export(Prior(), inputs, strict=strict).module()
    for mask in OTHERS:
        ours = support_prior(*inputs[:2], mask)
        assert torch.equal(exported(*inputs[:2], mask), ours) and ours.max() > 0


def test_an_exported_pfenet_gives_the_same_bits_for_other_masks():
    torch.manual_seed(0)
    model = FewShotModel(12, PFENet(8, (5, 3, 2)), 8).eval()
    inputs = features(2), features(2, 2, seed=1), masks(0.2, 0.2, 0.3, 0.4)
    exported = torch.export.export(model, inputs).module()
    with torch.no_grad():
        for mask in OTHERS:
            assert torch.equal(exported(*inputs[:2], mask), model(*inputs[:2], mask))


def test_a_cyctr_is_refused_and_not_exported_with_other_keys():
    "Its generator would go on from call to call, where evaluation seeds it anew."
    model = FewShotModel(12, CyCTR(8), 8, whole_support=True).eval()
    inputs = features(1), features(1, 1, kind=SupportFeatures), masks(0.2, 0.2, 0.3, 0.4)[:1, :1]
    with pytest.raises(Exception, match="data-dependent|Generator"):
        torch.export.export(model, inputs)


@pytest.mark.parametrize("share, others", [(0, 1), (0.3, 1), (1, 0)])
def test_all_positions_beside_the_object_are_one_zero_vector(share, others):
    support, mask = features(1).high[0], masks(share, share, share, share)[0, 0]
    weight = soft_mask(mask[None], (SIDE, SIDE))[0, 0]
    columns = foreground_vectors(support, mask)
    inside = [support[:, i, j] * weight[i, j] for i, j in (weight > 0).nonzero().tolist()]
    assert torch.equal(columns, torch.stack(inside + [torch.zeros(10)] * others, 1))
