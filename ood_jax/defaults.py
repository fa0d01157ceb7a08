"""Every key of a run that all methods share, with its default and unit.

A method's own keys are the DEFAULTS of its file in methods/.
"""

from ml_collections import ConfigDict


def defaults() -> ConfigDict:
    """Every key that all methods share."""
    c = ConfigDict()
    c.name = ""  # what tables call this run; "" = the method's name
    c.stages = ()  # names of stages, see `staged`; () = the run is one stage
    c.seed = 0  # of parameters, data order and augmentation
    c.data = _data()
    c.model = _model()
    c.head = _head()
    c.optim = _optim()
    c.train = _train()
    c.mesh = _mesh()
    c.score = _score()
    return c


def _data() -> ConfigDict:
    """Which images, and how large they are."""
    c = ConfigDict()
    c.train = "builtin:glyphs/train"  # in-distribution images, a source (README, "Sources")
    c.test = "builtin:glyphs/test"  # in-distribution test images, a source
    c.auxiliary = ""  # source of unlabelled other images; "" = none
    c.embeddings = ""  # a fixed teacher's, of data.train: stage:NAME, a workdir, or an .npz of
    # features [N, D] and perhaps logits [N, K]; "" = none
    c.near = ""  # near outliers: stage:NAME that mines, its folder, or its .npz; "" = none
    c.far = ""  # far outliers, likewise; "" = none
    c.balanced = False  # True = a class is drawn for each slot of a batch, then an image of it
    c.root = ""  # folder that relative paths and prepared TFDS sets lie in; "" = defaults
    c.size = 32  # px; every image is shrunk to size x size before any view
    c.mean = (0.485, 0.456, 0.406)  # per channel, of pixels in [0, 1]
    c.std = (0.229, 0.224, 0.225)
    c.workers = 0  # decoding processes of sets read image by image; 0 = in this one
    c.memory = 4 * 1024**3  # bytes; a decoded set up to this size lives in memory
    c.timeout = 900.0  # s that a batch may take, after which the run ends; 0 = no limit
    return c


def _model() -> ConfigDict:
    """The trunk."""
    c = ConfigDict()
    c.name = "vit"  # a module of ood_jax.models or an import path: vit | resnet | densenet (BC)
    # | wide_resnet
    c.width = 384  # ViT: token width; ResNet: channels of the first stage; wide_resnet: the same,
    # 16 x the widen factor; densenet: growth rate
    c.depth = 12  # ViT: blocks; ResNet: 10, 18, 34, 50, 101 or 152; others: 6n + 4, such as 28, 100
    c.heads = 6  # ViT only
    c.patch = 16  # px, ViT only
    c.image_size = 256  # px of global views and of evaluation
    c.stem = "cifar"  # cifar (3x3) | imagenet (7x7 and a max-pool), ResNet only
    c.stride = 1  # of the CIFAR stem, not of a ViT; 2 = a quarter of the work
    c.norm = "batch"  # batch | group, not of a ViT
    c.drop_path = 0.1  # of the last block, linear from 0; ViT only
    c.layer_scale = 0.0  # what LayerScale begins with, ViT only; 0 = none
    c.weights = ""  # what to begin with: PyTorch weights (.safetensors or .pth), the workdir of
    # another run, or stage:NAME, an earlier stage of this one; "" = untrained
    c.dtype = "float32"  # float32 | bfloat16: of activations; parameters and losses float32
    return c


def _head() -> ConfigDict:
    """What makes logits over K outputs of the trunk's features."""
    c = ConfigDict()
    c.name = "dino"  # dino (projections, then logits) | projection (both of the features) | linear
    # | none
    c.layers = 3  # of the MLP: dino's before its last layer, projection's in all
    c.hidden = 2048  # projection: 0 = as wide as the features
    c.bottleneck = 256  # width of the projections
    c.batch_norm = True  # projection: BatchNorm before each ReLU
    c.outputs = 4096  # K, soft-classes or classes; projection: 0 = no classifier
    c.second_outputs = 0  # projection, linear: of a second classifier, such as CSI's of shifts
    # or MCD's of the same classes; 0 = none
    c.train_gain = True  # dino: False = the last layer's gain stays 1 (norm_last_layer)
    return c


def _optim() -> ConfigDict:
    """The optimiser, its schedules, and what it leaves alone."""
    c = ConfigDict()
    c.name = "adamw"  # adamw | sgd | lars
    c.lr = 0.004  # peak, at batch lr_batch
    c.lr_batch = 256  # the peak is lr x train.batch / lr_batch; 0 = lr as it is
    c.schedule = "cosine"  # cosine | step: of the learning rate after its warm-up
    c.min_lr = 1e-6  # at the end of the cosine
    c.drops = (0.5, 0.75)  # step: shares of the run after which the rate is divided; () = constant
    c.drop = 10.0  # step: what it is divided by each time
    c.warmup_epochs = 30.0  # linear from 0
    c.b1 = 0.9
    c.b2 = 0.999
    c.eps = 1e-8
    c.momentum = 0.9  # sgd and lars
    c.nesterov = False  # sgd
    c.trust = 0.001  # lars: the trust coefficient
    c.lars_order = "simclr"  # simclr | simclr_popular | torchlars | dino: what comes before what
    c.no_adapt = r".*/(bias|scale)"  # lars: parameter paths that keep the plain rate
    c.weight_decay = 0.04  # at the start of its cosine
    c.weight_decay_end = 0.4
    c.no_decay = r".*/(bias|scale)"  # parameter paths exempt from decay
    c.multipliers = ()  # ("REGEX=NUMBER", ...): of the learning rate of these parameter paths
    c.clip = 3.0  # largest gradient norm of each parameter tensor; 0 = none
    c.freeze = r"head/last/.*"  # parameter paths that do not move at first
    c.freeze_epochs = 1.0
    return c


def _train() -> ConfigDict:
    """How long, on what, and what is kept."""
    c = ConfigDict()
    c.batch = 256  # global, in-distribution images a step
    c.epochs = 500.0
    c.steps = 0  # > 0 = squeeze all epochs, schedules and warm-ups too, into this many
    c.steps_per_epoch = 0.0  # 0 = steps / epochs, else the train set's images / batch
    c.accumulate = 1  # micro-batches a step
    c.devices = 0  # 0 = all
    c.log_every = 50  # steps
    c.checkpoint_every = 1000  # steps; the last step is always kept
    c.keep_last = 2  # checkpoints
    c.keep_every = 0  # steps; checkpoints at multiples are kept for good; 0 = none
    c.knn_every = 0  # epochs between kNN accuracies on data.test; 0 = never
    return c


def _mesh() -> ConfigDict:
    """How the devices share the work; changes no number of a run (README, "Many devices")."""
    c = ConfigDict()
    c.model = 1  # devices on the axis `model`; the others are on `data`, which splits a batch
    c.rules = ()  # ("REGEX=SPEC", ...): which arrays of the state are split, see layout.py
    return c


def _score() -> ConfigDict:
    """The scoring stage; keys below `scorers` are the scores' own (README, "Scores")."""
    c = ConfigDict()
    c.benchmark = ""  # an OpenOOD v1.5 benchmark of ood_jax.openood; "" = data.test, near and far
    c.near = ()  # OOD test sets, ("name=source", ...)
    c.far = ()
    c.calibration = ""  # source of ID images that set the threshold; "" = of data.train (README)
    c.keep = 0.95  # share of calibration images that the threshold keeps
    c.validation = ""  # source of OOD images that hyperparameters may be chosen on
    c.baselines = ()  # scored beside the checkpoint: pixels, untrained
    c.bootstrap = 1000  # resamples for the interval of each AUROC; 0 = none
    c.batch = 256  # images a forward pass
    c.block = 4096  # bank rows compared at once
    c.bank_memory = 1024**3  # bytes of a bank that stay on each device; a larger one is streamed
    c.knn = 20  # neighbours that vote for a label
    c.knn_temperature = 0.07
    c.scorers = ("exp_cosine",)  # names in ood_jax.scorers, all, or PKG.MODULE[:FUNCTION]
    c.feature = "features"  # features | projections | logits: what distances are measured in
    c.temperature = 0.04  # of exp-cosine
    c.neighbour = 50  # knn: the k-th nearest is what counts
    c.approximate = False  # knn: approximate top-k, fast on TPU
    c.shrinkage = "ledoit_wolf"  # of covariances: ledoit_wolf | trace | ridge | none
    c.shrinkage_strength = 1e-3  # trace: share of the mean variance added; ridge: added as it is
    c.clusters = 1  # ssd: k-means clusters
    c.energy_temperature = 1.0
    c.gen_gamma = 0.1
    c.gen_top = 100  # largest probabilities that count; all where there are fewer classes
    c.odin_temperature = 1000.0
    c.odin_epsilon = 0.0014  # step of the inputs, in units of pixels in [0, 1]
    c.react_percentile = 90.0  # of train activations, where features are cut off
    c.dice_percentile = 90.0  # of contributions; weights at or below it are dropped
    c.vim_dim = 0  # principal dimensions removed, vim and residual; 0 = by width
    c.nci_alpha = 1e-4
    c.nnguide_neighbours = 100
    c.nnguide_share = 0.01  # of the train set that is the bank
    c.she_metric = "inner_product"  # inner_product | euclidean | cosine
    c.gram_powers = (1, 2, 3, 4, 5)
    c.augmentations = 32  # random views of each image: norm_ensemble, norm_mean, csi
    c.crop_scale = (0.08, 1.0)  # share of the image's area in these views; csi has its own
    c.shifts = 1  # csi: rotations by 90 degrees, 1 to 4
    return c
