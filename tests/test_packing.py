"""Packs: the adapter bank's arithmetic, the turns that jobs take, and what happens to a job that fails in a pack."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from boothlab.diffusion.backbone import Backbone
from boothlab.diffusion.lora import ADAPTER, attach, lora_layers, trainable
from boothlab.packing.bank import Bank, Rows, dropped, share
from boothlab.packing.launching import PackSettings, pack_key
from boothlab.packing.pack import Pack, in_a_pack, view_for_this_job
from boothlab.packing.requests import Forward, leaves, rebuilt
from boothlab.turns import is_undivided, undivided
from tiny_pipelines import build, load

LINEAR = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj"]
CONVS = ["conv1", "conv2", "proj_in"]


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    found = load(build(request.param, tmp_path_factory.mktemp(request.param)))
    for network in (found.unet, *found.text_encoders.values()):
        network.double()
    found.dtype = torch.float64
    return found


def adapted(network: nn.Module, component: str, rank: int, alpha: float, targets: list[str], seed: int) -> nn.Module:
    """A tree with an adapter in float64 that does something."""
    tree = share(network)
    attach(tree, component, rank=rank, alpha=alpha, dropout=0.0, init="gaussian", targets=targets, seed=seed)
    stream = torch.Generator().manual_seed(seed)
    for value in trainable(tree).values():
        value.data = 0.2 * torch.randn(value.shape, generator=stream, dtype=torch.float64)
    return tree


def unet_inputs(backbone: Backbone, rows: int, seed: int) -> dict[str, Any]:
    stream = torch.Generator().manual_seed(seed)
    text = backbone.embed(backbone.tokenize([f"a photo of {n}" for n in range(rows)]))
    inputs: dict[str, Any] = {
        "sample": torch.randn((rows, *backbone.latent_shape), generator=stream, dtype=torch.float64),
        "timestep": torch.randint(1000, (rows,), generator=stream),
        "encoder_hidden_states": text.states_BTD,
    }
    if text.pooled_BP is not None:
        ids = torch.tensor([[32.0, 32.0, 0, 0, 32.0, 32.0]] * rows, dtype=torch.float64)
        inputs["added_cond_kwargs"] = {"text_embeds": text.pooled_BP, "time_ids": ids}
    return inputs


def joined(parts: list[Any]) -> Any:
    if isinstance(parts[0], dict):
        return {key: joined([part[key] for part in parts]) for key in parts[0]}
    return torch.cat(parts)


def test_a_bank_computes_what_each_adapter_computes_alone(backbone: Backbone) -> None:
    kinds = [(2, 2.0, LINEAR), (4, 1.0, LINEAR + CONVS), (2, 2.0, LINEAR), (3, 6.0, CONVS), (1, 1.0, LINEAR + CONVS)]
    trees = [adapted(backbone.unet, "unet", *kind, seed) for seed, kind in enumerate(kinds)]
    counts = [2, 1, 2, 1, 1]
    inputs = [unet_inputs(backbone, count, seed) for seed, count in enumerate(counts)]
    bare = unet_inputs(backbone, 1, 9)  # a job without an adapter rides along
    bank = Bank(backbone.unet)
    for job, tree in enumerate(trees):
        bank.enter(job, tree)
    order = bank.order(dict(enumerate(counts)))
    assert sorted(order) == [0, 1, 2, 3, 4] and abs(order.index(0) - order.index(2)) == 1  # of one shape: neighbours
    rows = [Rows(job, counts[job]) for job in order] + [Rows("bare", 1)]
    whole = joined([inputs[job] for job in order] + [bare])
    with bank.routed(rows) as used:
        together = bank.host(**whole, return_dict=False)[0]
    together.pow(2).mean(dim=(1, 2, 3)).sum().backward()
    found = {id(p): leaf.value.grad[i] for leaf in used for i, p in enumerate(leaf.parameters)}  # type: ignore[index]
    parts = dict(zip([*order, "bare"], together.split([one.count for one in rows]), strict=True))
    for job, tree in enumerate(trees):
        mine = [found[id(value)] for value in trainable(tree).values()]
        alone = tree(**inputs[job], return_dict=False)[0]
        alone.pow(2).mean(dim=(1, 2, 3)).sum().backward()
        torch.testing.assert_close(parts[job], alone, rtol=1e-10, atol=1e-10)
        for gradient, value in zip(mine, trainable(tree).values(), strict=True):
            torch.testing.assert_close(gradient, value.grad, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(parts["bare"], backbone.unet(**bare, return_dict=False)[0], rtol=1e-10, atol=1e-10)
    assert not lora_layers(backbone.unet)  # the shared network was left alone
    with torch.no_grad():  # an optimizer's step on a job's parameters is a step of the bank's
        next(iter(trainable(trees[0]).values())).add_(0.5)
        stepped = trees[0](**inputs[0], return_dict=False)[0]
        with bank.routed([Rows(0, 2)]):
            torch.testing.assert_close(bank.host(**inputs[0], return_dict=False)[0], stepped, rtol=1e-10, atol=1e-10)
    kept = [value.detach().clone() for value in trainable(trees[1]).values()]
    bank.leave(1)
    assert all(torch.equal(a, b) for a, b in zip(kept, trainable(trees[1]).values(), strict=True))
    with bank.routed([Rows(1, 1)]):
        gone = bank.host(**inputs[1], return_dict=False)[0]
    torch.testing.assert_close(gone, backbone.unet(**inputs[1], return_dict=False)[0], rtol=1e-10, atol=1e-10)


def test_rows_that_do_not_add_up_are_refused(backbone: Backbone) -> None:
    bank = Bank(backbone.unet)
    bank.enter(0, adapted(backbone.unet, "unet", 2, 2.0, LINEAR, 0))
    with bank.routed([Rows(0, 3)]), pytest.raises(ValueError, match="2 rows reached"):
        bank.host(**unet_inputs(backbone, 2, 0))


def test_a_tree_shares_the_weights_and_nothing_else(backbone: Backbone) -> None:
    tree = share(backbone.unet)
    assert {id(value) for value in tree.parameters()} == {id(value) for value in backbone.unet.parameters()}
    assert not {id(layer) for layer in tree.modules()} & {id(layer) for layer in backbone.unet.modules()}


@pytest.mark.parametrize("chance", [0.1, 0.5])
def test_dropout_draws_the_masks_that_a_job_alone_draws(chance: float) -> None:
    x = torch.arange(1.0, 61.0).reshape(3, 4, 5)
    torch_state = torch.get_rng_state()
    try:
        torch.manual_seed(3)
        stream = torch.Generator()
        stream.set_state(torch.get_rng_state())
        first, second = (nn.functional.dropout(x, chance) for _ in range(2))
    finally:
        torch.set_rng_state(torch_state)
    assert torch.equal(dropped(x, chance, stream), first) and torch.equal(dropped(x, chance, stream), second)
    assert torch.equal(dropped(x, chance, None), x)


# --- turns


class Stub:
    """In a backbone's place: its `unet` counts the calls and the rows of each."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.calls: list[int] = []

        class Counting(nn.Module):
            def forward(inner, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> tuple[Tensor]:
                self.calls.append(len(sample))
                return (sample * 2 + timestep[:, None],)

        self.unet: nn.Module = Counting()
        self.text_encoders: dict[str, nn.Module] = {}
        self.pipeline = type("Pipeline", (), {"unet": self.unet})()


def asking(stub: Stub, times: int, value: float, at_end: Callable[[], None] = lambda: None) -> Callable[[], float]:
    def work() -> float:
        view: Any = view_for_this_job(stub)  # type: ignore[arg-type]
        assert in_a_pack() and not is_undivided()
        x = torch.full((1, 1), value)
        with torch.no_grad():
            for _ in range(times):
                x = view.unet(x, torch.tensor([1]), torch.zeros(1, 1))[0]
        at_end()
        return float(x)

    return work


def test_jobs_meet_at_the_network_and_leave_and_join() -> None:
    stub = Stub()
    found = Pack(2, 8).run([asking(stub, 3, 1.0), asking(stub, 1, 5.0), asking(stub, 1, 7.0)])
    assert found == [15.0, 11.0, 15.0]
    assert stub.calls == [2, 2, 1]  # the third job takes the place of the second
    assert not in_a_pack()


def test_too_many_rows_are_computed_in_parts() -> None:
    stub = Stub()
    assert Pack(5, 2).run([asking(stub, 1, float(n)) for n in range(5)]) == [2.0 * n + 1 for n in range(5)]
    assert stub.calls == [2, 2, 1]


def test_a_job_that_raises_ends_alone() -> None:
    stub = Stub()

    def broken() -> None:
        raise ArithmeticError("mine")

    found = Pack(3, 8).run([asking(stub, 2, 1.0), asking(stub, 1, 1.0, broken), asking(stub, 2, 2.0)])
    assert found[0] == 7.0 and found[2] == 11.0 and isinstance(found[1], ArithmeticError)
    assert stub.calls == [3, 2]


def test_out_of_memory_halves_what_is_computed_at_once_and_loses_nothing(caplog: pytest.LogCaptureFixture) -> None:
    stub = Stub()
    whole = stub.unet.forward

    def cramped(sample: Tensor, *rest: Any, **named: Any) -> Any:
        if len(sample) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return whole(sample, *rest, **named)

    type(stub.unet).forward = lambda self, *args, **named: cramped(*args, **named)  # type: ignore[method-assign]
    found = Pack(8, 64).run([asking(stub, 2, float(n)) for n in range(8)])
    assert found == [4.0 * n + 3 for n in range(8)]
    assert stub.calls == [2] * 8 and "going on with 2" in caplog.text


def test_a_request_too_large_even_alone_fails_its_own_job() -> None:
    stub = Stub()

    def never(sample: Tensor, *rest: Any, **named: Any) -> Any:
        if float(sample.max()) > 4:
            raise torch.OutOfMemoryError("out of memory")
        return (sample,)

    type(stub.unet).forward = lambda self, *args, **named: never(*args, **named)  # type: ignore[method-assign]
    good, bad = Pack(2, 8).run([asking(stub, 1, 1.0), asking(stub, 1, 5.0)])
    assert good == 1.0 and isinstance(bad, torch.OutOfMemoryError)


def test_whoever_holds_a_lock_computes_alone() -> None:
    stub = Stub()

    def locked() -> float:
        view: Any = view_for_this_job(stub)  # type: ignore[arg-type]
        with undivided(), torch.no_grad():
            return float(view.unet(torch.ones(1, 1), torch.tensor([0]), torch.zeros(1, 1))[0])

    assert Pack(2, 8).run([locked, asking(stub, 1, 1.0)]) == [2.0, 3.0]
    assert stub.calls == [1, 1]


@pytest.mark.parametrize(("stop", "code"), [(KeyboardInterrupt(), 130), (SystemExit(143), 143)])
def test_being_told_to_end_closes_every_job(stop: BaseException, code: int) -> None:
    stub, codes = Stub(), []

    def patient(times: int) -> Callable[[], float]:
        def work() -> float:
            try:
                return asking(stub, times, 1.0)()
            except SystemExit as end:
                codes.append(end.code)
                raise

        return work

    class Signalled(Pack[float]):
        def _compute(self, active: list[Any]) -> None:
            if len(stub.calls) == 2:
                raise stop
            super()._compute(active)

    def jobs() -> Iterator[Callable[[], float]]:
        yield from (patient(5), patient(5))

    with pytest.raises(type(stop)):
        Signalled(2, 1).run(jobs())
    assert codes == [code, code]


def test_a_job_that_is_told_to_end_ends_the_others() -> None:
    stub, ended = Stub(), []

    def leaving() -> float:
        raise SystemExit(143)

    def other() -> float:
        try:
            return asking(stub, 3, 1.0)()
        except SystemExit:
            ended.append(True)
            raise

    with pytest.raises(SystemExit):
        Pack(2, 8).run([other, leaving])
    assert ended == [True]


def test_a_pack_has_one_backbone() -> None:
    first, second = Stub(), Stub()
    found = Pack(2, 8).run([asking(first, 1, 1.0), asking(second, 1, 1.0)])
    assert found[0] == 3.0 and isinstance(found[1], ValueError)


# --- requests


def test_structures_are_taken_apart_and_put_together() -> None:
    tree = {"a": torch.zeros(2), "b": (torch.ones(1), None, [torch.ones(3)])}
    assert [tuple(leaf.shape) for leaf in leaves(tree)] == [(2,), (1,), (3,)]
    doubled = rebuilt(tree, lambda leaf: leaf + 1)
    assert float(doubled["a"].sum()) == 2.0 and doubled["b"][1] is None and isinstance(doubled["b"], tuple)


def test_only_requests_that_one_call_can_answer_are_of_one_kind() -> None:
    from boothlab.packing.requests import Arithmetic

    def forward(shape: tuple[int, ...] = (1, 4), grad: bool = False, **fixed: Any) -> Forward:
        return Forward(0, "unet", {"x": torch.zeros(shape)}, fixed, Arithmetic(grad, None))

    assert forward().kind == forward((3, 4)).kind == forward().kind
    others = [forward((1, 5)), forward(grad=True), forward(return_dict=False), forward(hook=object())]
    assert len({forward().kind, *(one.kind for one in others)}) == 5


def test_as_many_jobs_as_the_largest_of_them_allows() -> None:
    asked: list[int] = []

    def fit(config: Any) -> int:
        asked.append(config.lora.rank)
        return 64 // config.lora.rank

    from boothlab.compose.run import compose
    from boothlab.compose.typed import load as load_config
    from boothlab.config import TrainConfig

    jobs = [load_config(compose("train", [f"lora.rank={rank}", f"seed={seed}"]), TrainConfig)[1]
            for rank in (4, 16) for seed in (0, 1)]  # fmt: skip
    assert PackSettings(None, 8, None, fit).size(jobs) == 4 and sorted(asked) == [4, 16]
    assert PackSettings(None, 8, None).size(jobs) == 16 and PackSettings(3, 8, None, fit).size(jobs) == 3
    assert PackSettings(None, 8, None, lambda config: 0).size(jobs) == 1


def test_the_forecast_of_the_dollhouse_leaves_room_for_many() -> None:
    from boothlab.building.packs import jobs_that_fit
    from boothlab.compose.run import compose
    from boothlab.compose.typed import load as load_config
    from boothlab.config import TrainConfig

    one, large = (load_config(compose("train", [f"lora.rank={rank}"]), TrainConfig)[0] for rank in (4, 512))
    assert jobs_that_fit(one) > jobs_that_fit(large) >= 1


def test_who_can_share_a_model() -> None:
    from boothlab.compose.run import compose
    from boothlab.compose.typed import load as load_config
    from boothlab.config import ScoreConfig, TrainConfig

    def key(*words: str) -> object:
        return pack_key(load_config(compose("train", words), TrainConfig)[1], TrainConfig)

    same = key()
    assert same is not None
    for words in (["lora.rank=2"], ["seed=3"], ["optim.lr=1e-5"], ["prior.enabled=true"], ["data.batch_size=1"]):
        assert key(*words) == same
    for words in (["backbone.resolution=64"], ["backbone.precision=bf16"], ["trainer.gradient_checkpointing=true"]):
        assert key(*words) not in (None, same)
    assert key("trainer.gradient_checkpointing=true", "lora.dropout=0.1") is None
    assert key("trainer.devices=2") is key("trainer.compile=blocks") is None
    assert pack_key({}, ScoreConfig) is None
    assert ADAPTER
