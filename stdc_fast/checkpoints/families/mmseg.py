"""mmsegmentation 1.x."""

from stdc_fast.checkpoints.families.family import Family, KeyMap

FAMILY = Family(
    name="mmseg",
    names=r"backbone\.backbone\.stages\.|decode_head\.",
    training_only=r"auxiliary_head\.|backbone\.backbone\.final_conv\.",
    rename=KeyMap(
        block=r"backbone\.backbone\.stages\.(\d)\.(?:(\d+)\.)?",
        stages=("0", "1", "2", "3", "4"),
        rules=(
            (r"layers\.(\d+)\.", r"conv_list.\1."),
            (r"downsample\.conv\.", "avd_layer.0."),
            (r"downsample\.bn\.", "avd_layer.1."),
            (r"^backbone\.arms\.0\.", "cp.arm32."),
            (r"^backbone\.arms\.1\.", "cp.arm16."),
            (r"^(cp\.arm\d+)\.conv_layer\.", r"\1.conv."),
            (r"^(cp\.arm\d+)\.atten_conv_layer\.1\.conv\.", r"\1.conv_atten."),
            (r"^(cp\.arm\d+)\.atten_conv_layer\.1\.bn\.", r"\1.bn_atten."),
            (r"^backbone\.convs\.0\.", "cp.conv_head32."),
            (r"^backbone\.convs\.1\.", "cp.conv_head16."),
            (r"^backbone\.conv_avg\.", "cp.conv_avg."),
            (r"^backbone\.ffm\.conv0\.", "ffm.convblk."),
            (r"^backbone\.ffm\.attention\.([12])\.conv\.", r"ffm.conv\1."),
            (r"^decode_head\.convs\.0\.", "conv_out.conv."),
            (r"^decode_head\.conv_seg\.", "conv_out.conv_out."),
        ),
    ),
    classifier_bias=True,
    backbone_names=r"stages\.",
)
