"""super-gradients 3.x."""

from stdc_fast.checkpoints.families.family import Family, KeyMap

FAMILY = Family(
    name="super-gradients",
    names=r"cp\.backbone\.stages\.block_s",
    training_only=r"aux_head_s(16|32)\.|detail_head8\.",
    rename=KeyMap(
        block=r"cp\.backbone\.stages\.(block_s\d+)\.(\d+)\.",
        stages=("block_s2", "block_s4", "block_s8", "block_s16", "block_s32"),
        rules=(
            (r"conv_list\.1\.0\.seq\.conv\.", "avd_layer.0."),
            (r"conv_list\.1\.0\.seq\.bn\.", "avd_layer.1."),
            (r"conv_list\.1\.1\.seq\.", "conv_list.1."),
            (r"^(cp\.backbone\..*)\.seq\.", r"\1."),
            (r"^(cp\.arm\d+)\.conv_first\.seq\.", r"\1.conv."),
            (r"^(cp\.arm\d+)\.attention_block\.1\.seq\.conv\.", r"\1.conv_atten."),
            (r"^(cp\.arm\d+)\.attention_block\.1\.seq\.bn\.", r"\1.bn_atten."),
            (r"^cp\.upsample(16|32)\.1\.seq\.", r"cp.conv_head\1."),
            (r"^cp\.context_embedding\.context_embedding\.1\.seq\.", "cp.conv_avg."),
            (r"^ffm\.pw_conv\.seq\.", "ffm.convblk."),
            (r"^ffm\.attention_block\.1\.seq\.conv\.", "ffm.conv1."),
            (r"^ffm\.attention_block\.2\.", "ffm.conv2."),
            (r"^segmentation_head\.0\.seg_head\.0\.seq\.", "conv_out.conv."),
            (r"^segmentation_head\.0\.seg_head\.2\.", "conv_out.conv_out."),
        ),
    ),
    backbone_names=r"backbone\.stages\.",
)
