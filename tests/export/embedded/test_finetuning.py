"""What variants begin with: the embedded networks as they are, and a UNet that does as before until it has learned."""

import pytest
import torch
from diffusers import UNet2DConditionModel

from export.embedded.denoiser import new_schedule, new_unet, noise_at_random, velocity_loss
from export.embedded.finetuning import BASE_FOLDER, Base, adapted_unet, loss_beside

SAMPLE = (2, 4, 8, 8)


@pytest.fixture(scope="module")
def base() -> Base:
    return Base.load()


@pytest.fixture
def inputs(base: Base) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    context = base.context(["a red circle on a blue background", ""])
    return torch.randn(SAMPLE, generator=generator), torch.tensor([981, 21]), context


def test_the_base_is_the_checkpoint_in_fp32_and_learns_nothing(base: Base) -> None:
    kept = UNet2DConditionModel.from_pretrained(BASE_FOLDER / "unet").state_dict()
    for name, value in base.unet.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value.half(), kept[name].half())
    for network in (base.encoder, base.unet, base.vae):
        assert not network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())


def test_texts_are_seen_as_cross_attention_sees_them(base: Base) -> None:
    alone, both = base.context(["a red circle"]), base.context(["a red circle", "a blue star"])
    assert both.shape == (2, 77, 128)
    torch.testing.assert_close(both[:1], alone)
    assert not torch.allclose(both[0], both[1])


@pytest.mark.parametrize("channels", [5, 9])
def test_added_channels_count_for_nothing_yet(
    base: Base, inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor], channels: int
) -> None:
    latents, timesteps, context = inputs
    narrow, wide = (adapted_unet(base.unet, n).eval() for n in (4, channels))
    beside = torch.randn(2, channels - 4, 8, 8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        before = narrow(latents, timesteps, context).sample
        after = wide(torch.cat([latents, beside], dim=1), timesteps, context).sample
    torch.testing.assert_close(after, before)


def test_a_leaner_unet_keeps_the_weights_of_what_it_has(base: Base) -> None:
    lean = adapted_unet(base.unet, 4)
    weights, theirs = lean.state_dict(), base.unet.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in weights.items())
    assert {name.split(".attentions")[0].split(".resnets")[0] for name in theirs.keys() - weights.keys()} == {
        "mid_block",
        "down_blocks.2",
    }
    assert 2 * sum(value.numel() for value in weights.values()) < 8e6


def test_all_of_an_adapted_unet_learns(base: Base, inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    latents, _, context = inputs
    unet = adapted_unet(base.unet, 5)
    noised = noise_at_random(new_schedule(), latents, torch.Generator().manual_seed(3))
    loss_beside(unet, noised, torch.ones(2, 1, 8, 8), context).backward()  # type: ignore[no-untyped-call]
    still = [name for name, value in unet.named_parameters() if value.grad is None or not value.grad.abs().sum() > 0]
    assert still == []
    assert unet.conv_in.weight.grad[:, 4].abs().sum() > 0


def test_the_loss_is_that_of_a_v_prediction_with_capped_snr_weights() -> None:
    schedule, generator = new_schedule(), torch.Generator().manual_seed(4)
    clean = torch.randn(64, 4, 4, 4, generator=generator)
    noised = noise_at_random(schedule, clean, generator)
    signal = schedule.alphas_cumprod[noised.timesteps][:, None, None, None]
    restored = signal.sqrt() * noised.latents - (1 - signal).sqrt() * noised.velocity
    torch.testing.assert_close(restored, clean, rtol=1e-4, atol=1e-4)
    snr = (signal / (1 - signal)).flatten()
    torch.testing.assert_close(noised.weight, (snr + 1).clamp(max=6) / (snr + 1))
    assert velocity_loss(noised.velocity, noised) == 0
    torch.testing.assert_close(velocity_loss(noised.velocity + 2, noised), 4 * noised.weight.mean())


def test_a_timestep_is_drawn_for_each() -> None:
    noised = noise_at_random(new_schedule(), torch.zeros(500, 1, 1, 1), torch.Generator().manual_seed(5))
    assert len(set(noised.timesteps.tolist())) > 300
    assert noised.timesteps.min() < 20
    assert noised.timesteps.max() > 980


def test_a_new_unet_can_be_adapted_too() -> None:
    assert adapted_unet(new_unet(), 9).conv_in.weight.shape == (48, 9, 3, 3)
