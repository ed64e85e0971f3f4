"""Settings of a golden case, as the reference names them, in our configuration's terms."""

from voken_common.config.loading import validate

NETWORK_DEFAULTS = {"attn_resolutions": [], "dropout": 0.0}


def model_section(dd, network):
    """`ddconfig` of the reference, which ignores attention at resolutions that no level has."""
    dd = NETWORK_DEFAULTS | dd
    levels = [dd["resolution"] // 2**i for i in range(len(dd["ch_mult"]))] if network == "vqgan" else []
    return {
        "network": network,
        "resolution": dd["resolution"],
        "channels": dd["ch"],
        "channel_multipliers": dd["ch_mult"],
        "residual_blocks": dd["num_res_blocks"],
        "z_channels": dd["z_channels"],
        "image_channels": dd["in_channels"],
        "attention_resolutions": [side for side in dd["attn_resolutions"] if side in levels],
        "dropout": dd["dropout"] if network == "vqgan" else 0.0,
    }


def discriminator_section(loss, video=False):
    """Which discriminator a `lossconfig` asks for; reference.md section 6 has the defaults."""
    if loss.get("use_blur", False):
        return {
            "kind": "blur",
            "hidden_channels": loss.get("disc_hidden_channels", 128),
            "stages": loss.get("disc_num_stages", 4),
            "blur_resample": loss.get("blur_resample", True),
            "blur_kernel_size": loss.get("blur_kernel_size", 4),
        }
    layers = loss.get("disc_num_layers", 4 if video else 3)
    return {"kind": "patchgan_3d" if video else "patchgan", "channels": loss.get("disc_ndf", 64), "layers": layers}


def adversarial_section(loss):
    """Weights of the two players; a generator weight of null is the adaptive one."""
    objective = {"non_saturate": "non_saturating"}
    name = loss.get("disc_loss", "hinge")
    return {
        "objective": objective.get(name, name),
        "generator_weight": loss.get("gen_loss_weight"),
        "adaptive_scale": loss.get("disc_weight", 1.0),
        "discriminator_factor": loss.get("disc_factor", 1.0),
        "start_step": loss["disc_start"],
        "lecam_weight": loss["lecam_loss_weight"],
    }


def lfq_section(init, loss):
    """LFQ's quantizer and its weights."""
    return {
        "kind": "lfq",
        "codebook_size": init["n_embed"],
        "code_dim": init["embed_dim"],
        "sample_entropy_weight": init.get("sample_minimization_weight", 1.0),
        "batch_entropy_weight": init.get("batch_maximization_weight", 1.0),
        "entropy_weight": loss["codebook_weight"],
        "commitment_weight": loss["commit_weight"],
        "enlarge_ratio": loss.get("codebook_enlarge_ratio", 3),
        "enlarge_steps": loss.get("codebook_enlarge_steps", 2000),
    }


def ibq_section(init, loss):
    """IBQ's quantizer and its weights."""
    if init.get("l2_normalize", False):
        raise NotImplementedError("IBQ with l2_normalize: no published model has it")
    entropy = init.get("use_entropy_loss", False)
    return {
        "kind": "ibq",
        "codebook_size": init["n_embed"],
        "code_dim": init["embed_dim"],
        "beta": init.get("beta", 0.25),
        "use_entropy": entropy,
        "temperature": init.get("entropy_temperature", 0.01),
        "sample_entropy_weight": init.get("sample_minimization_weight", 1.0),
        "batch_entropy_weight": init.get("batch_maximization_weight", 1.0),
        "quantizer_weight": loss.get("quant_loss_weight", 1.0) if entropy else loss.get("codebook_weight", 1.0),
        "entropy_weight": loss.get("entropy_loss_weight", 0.05),
    }


def schedule_section(schedule):
    """The learning-rate schedule of a trajectory; its names are ours."""
    if schedule is None:
        return {"kind": "constant"}
    return {
        "kind": schedule["kind"],
        "warmup_steps": schedule.get("wp_it", 0),
        "start_factor": schedule.get("wp0", 0.005),
        "end_factor": schedule.get("wpe", schedule.get("min_multiplier", 0.01)),
    }


def trajectory_config(case, dtype="float64"):
    """A whole run for a train_lfq, train_ibq or train_video case."""
    init, spec = case.config["init_args"], case.config
    loss = init["lossconfig"]["params"]
    network = {"train_lfq": "magvit2", "train_ibq": "vqgan", "train_video": "magvit2_video"}[case.kind]
    lfq, video = network != "vqgan", network == "magvit2_video"
    images = {"kind": "skimage", "region": "all"}
    videos = {"kind": "video_folder", "path": "videos", "frames": spec["shape"][2]}
    schedule = spec.get("schedule")
    total = (schedule or {}).get("max_it", spec["steps"])
    return validate(
        {
            "name": case.name,
            "model": model_section(init["ddconfig"], network),
            "quantizer": lfq_section(init, loss) if lfq else ibq_section(init, loss),
            "discriminator": discriminator_section(loss, video),
            "adversarial": adversarial_section(loss),
            "perceptual": {"weights": "auto", "weight": loss.get("perceptual_weight", 1.0)},
            "optimizer": {
                "learning_rate": spec["lr"],
                "betas": [0.5, 0.9],
                "schedule": schedule_section(schedule),
            },
            "precision": {"param_dtype": dtype, "compute_dtype": dtype},
            "data": {"train": videos if video else images, "image_size": spec["shape"][-1]},
            "training": {"batch_size": spec["shape"][0], "steps": total},
        },
        origin=case.name,
    )


def checkpoint_config(case):
    """The configuration of the tokenizer in an upstream_checkpoint case."""
    init = case.config["init_args"]
    loss = init["lossconfig"]["params"]
    return validate(
        {
            "name": case.name,
            "model": model_section(init["ddconfig"], "magvit2"),
            "quantizer": lfq_section(init, loss),
            "discriminator": discriminator_section(loss),
            "adversarial": adversarial_section(loss),
            "data": {"train": {"kind": "skimage", "region": "all"}, "image_size": init["ddconfig"]["resolution"]},
            "training": {"batch_size": case.config["input"]["shape"][0], "steps": 1},
        },
        origin=case.name,
    )
