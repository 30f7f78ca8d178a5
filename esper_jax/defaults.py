"""Every knob, once, with its default and unit. All configs start here."""

from ml_collections import ConfigDict, FieldReference


def get_config() -> ConfigDict:
  """Returns the defaults; `esper_jax/knobs.py` holds the range of each key."""
  config = ConfigDict()
  config.seed = 0  # integer; every random draw of the run derives from it
  config.deterministic = False  # on GPU: only bit-reproducible operations

  config.host = ConfigDict()
  # resnet8 | resnet18 | resnet20 | resnet32 | resnet34 | resnet56 | mlp; gpt
  # for text; given = the model that `esper_jax.grow` was called with
  config.host.name = "resnet18"
  # channels of the first stage; 0 = the host's own: 64 for resnet18 and 34,
  # 16 for resnet8, 20, 32 and 56; features of a layer, 128 for mlp, 64 for gpt
  config.host.width = 0
  config.host.depth = 2  # hidden layers (mlp) or blocks (gpt)
  config.host.heads = 4  # of attention; a divisor of the width (gpt only)
  config.host.norm = "batch"  # batch | group
  # channels between a residual block's two convolutions, one per stage;
  # () or 0 = the stage's own width
  config.host.inner_widths = ()
  # folder of an export: the network that grew there goes on, with new slots;
  # the other keys of host must be its own; "" = a new network
  config.host["from"] = ""
  # "all", or a tuple of slot names
  config.host.slots = FieldReference("all", field_type=object)

  config.data = ConfigDict()
  # cifar10 | cifar100 | digits; as_you_like_it, a text
  config.data.name = "cifar10"
  # in place of data.name: folder:PATH = images of yours in a folder per class;
  # text:PATH = a text file of yours, in UTF-8; given = the data that
  # `esper_jax.grow` was called with
  config.data.source = ""
  # pixels; side of the square that images of a folder are resized and cropped
  # to; 0 = as they are
  config.data.image_size = 0
  config.data.context = 64  # characters that are seen at once (text only)
  config.data.dir = ""  # folder that holds the data set; "" = the cache
  # folder of downloads and decoded images; "" = ~/.cache/esper_jax
  config.data.cache_dir = ""
  config.data.download = True  # whether absent data may be downloaded
  config.data.batch_size = 32  # examples per training step
  # examples per evaluation step; 0 = the whole split, at most 512
  config.data.eval_batch_size = 0
  config.data.validation_fraction = 0.1  # share of train held out, in (0, 1)
  config.data.split_seed = 0  # integer; which examples are held out (images)
  # "none", or a tuple out of "crop", "flip", "cutout"
  config.data.augment = FieldReference("none", field_type=object)
  config.data.crop_padding = 4  # pixels on each side before a random crop
  config.data.cutout_size = 8  # pixels; side of the square that is blanked
  config.data.train_limit = 0  # training examples to use; 0 = all

  config.optimizer = ConfigDict()
  config.optimizer.name = "adamw"  # sgd | adamw | adam | lion | rmsprop
  config.optimizer.learning_rate = 1e-3  # peak of the schedule, per step
  config.optimizer.schedule = "cosine"  # constant | cosine | wsd
  config.optimizer.warmup_epochs = 0.0  # epochs from 0 to the peak
  config.optimizer.decay_fraction = 0.2  # share of the run that decays (wsd)
  config.optimizer.final_factor = 0.0  # last learning rate / peak
  config.optimizer.momentum = 0.9  # decay per step of the first moment
  config.optimizer.b2 = 0.999  # decay per step of the second moment
  # decoupled, times the learning rate; not on norms and biases
  config.optimizer.weight_decay = 1e-4
  config.optimizer.clip_norm = 0.0  # global norm per group; 0 = off
  # optimizer state when a seed is planted: "zero" keeps the old and starts
  # the new at zero, "global_count" too but at the host's step count, "reset"
  # restarts all, "copy" starts the new as a copy
  config.optimizer.newborn = "zero"
  config.optimizer.newborn_warmup_steps = 50  # steps from 0 to full rate

  config.train = ConfigDict()
  config.train.epochs = 100  # passes over the training split
  config.train.label_smoothing = 0.0  # share of the target spread over classes
  config.train.precision = "float32"  # float32 | bfloat16 | auto (compute)
  config.train.accumulate_steps = 1  # steps whose gradients make one update
  config.train.ema_decay = 0.0  # per step, of the averaged weights; 0 = off
  # steps per compiled call; 0 = the backend's default: 1 on CPU, else 32
  config.train.chunk_steps = 0
  config.train.log_every = 50  # steps between two lines of metrics.jsonl
  config.train.max_steps = 0  # steps after which the run ends; 0 = no cap

  config.eval = ConfigDict()
  # whether a completed run reads the test set, once; False while tuning
  config.eval.test = True

  config.kasmina = ConfigDict()
  config.kasmina.blueprints = ()  # names to choose from; () = all that fit
  config.kasmina.initializer = "zero_out"  # zero_out | random | gradient
  config.kasmina.blend = "add"  # add | multiply | gate
  config.kasmina.alpha_curve = "linear"  # linear | cosine | sigmoid
  config.kasmina.blend_epochs = 3  # epochs for alpha to go from 0 to 1
  # pull of an isolated seed's output towards zero; 0 = off, output unbounded
  config.kasmina.proximal = 1.0
  config.kasmina.seeds_per_slot = 1  # live seeds side by side in one slot
  config.kasmina.max_per_slot = 2  # seeds of one slot, fossilized ones included
  config.kasmina.min_training_epochs = 2  # epochs in TRAINING, at least
  # epochs in TRAINING before a cull; a learned policy decides for itself
  config.kasmina.max_training_epochs = 8
  config.kasmina.min_holding_epochs = 1  # epochs in HOLDING, at least
  # epochs in HOLDING before a cull; a learned policy decides for itself
  config.kasmina.max_holding_epochs = 4
  config.kasmina.embargo_epochs = 3  # epochs a slot rests after a cull
  # standard errors that the contribution must exceed to fossilize a seed
  config.kasmina.gain_sigmas = 2.0
  # standard errors that it must exceed for a seed to leave TRAINING; below 0:
  # the seed may not hurt by more than that
  config.kasmina.training_gain_sigmas = -2.0
  # rms gradient of a seed / of the host; above it the seed is exploding
  config.kasmina.max_gradient_ratio = 1e3
  config.kasmina.measure_examples = 1024  # validation examples per ablation
  config.kasmina.measure_budget = 0.05  # share of the training FLOPs

  config.tamiyo = ConfigDict()
  # never | periodic | schedule | random | heuristic | replay | learned; given =
  # the one that `esper_jax.grow` was called with. The files in configs/ set
  # learned, but char_gpt.py
  config.tamiyo.policy = "heuristic"
  # of a learned policy: a file, or a name that Urza keeps one under; "" = the
  # shipped one. Or the file of a policy of your own
  config.tamiyo.policy_path = ""
  # where a learned policy cannot be used: fallback = the heuristic goes on,
  # stop = the run ends
  config.tamiyo.on_policy_error = "fallback"
  # of a learned policy: 0 = it does what is likeliest; 1 = it draws, as its
  # network says
  config.tamiyo.temperature = 0.0
  config.tamiyo.adaptation_frequency = 1  # epochs between two decisions
  config.tamiyo.max_adaptations_per_epoch = 2  # germinations per decision
  config.tamiyo.max_growths = 8  # germinations in the whole run
  config.tamiyo.warmup_epochs = 2  # epochs before the first germination
  config.tamiyo.plateau_epochs = 2  # epochs over which a plateau is judged
  # relative fall of the validation loss below which it is a plateau
  config.tamiyo.plateau_delta = 0.01
  config.tamiyo.period_epochs = 3  # epochs between germinations (periodic)
  config.tamiyo.probability = 0.3  # of a germination, per epoch (random)
  # ((epochs done, slot, blueprint), ...) to germinate (schedule)
  config.tamiyo.schedule = ()
  config.tamiyo.probe_examples = 256  # training examples per look at the slots
  # events.jsonl of the completed run whose growth is enacted (replay)
  config.tamiyo.replay = ""
  # slots | times | "": what of it is drawn at random; "" = nothing (replay)
  config.tamiyo.replay_permute = ""
  config.tamiyo.replay_seed = 0  # integer; of that draw (replay)
  # whether its final network is there from the start instead, alpha 1, born
  # as kasmina.initializer says, and nothing grows (replay)
  config.tamiyo.replay_final = False

  config.tezzeret = ConfigDict()
  config.tezzeret.lead_epochs = 1  # epochs from a decision to its enactment
  config.tezzeret.guesses = 2  # likely decisions to compile for; 0 = none
  # of compiling, per epoch, for guesses and what else may not be needed
  config.tezzeret.guess_seconds = 60.0
  config.tezzeret.max_programs = 8  # kept beside those of present topologies
  config.tezzeret.max_bytes = 2**31  # of machine code kept likewise
  # seconds to wait for a program before its growth is cancelled; 0 = no limit.
  # With one, results depend on the speed of the machine.
  config.tezzeret.timeout_seconds = 0.0
  # that compile ahead of need, beside training; 0 = compile when needed
  config.tezzeret.threads = 1
  # folder of compiled programs for later runs; off = none, "" =
  # ~/.cache/esper_jax/programs. JAX_COMPILATION_CACHE_DIR, where set, wins.
  config.tezzeret.cache_dir = ""

  config.governor = ConfigDict()
  config.governor.loss_factor = 3.0  # loss / its running median: rolls back
  config.governor.window = 20  # logged losses in the running median
  config.governor.chance_margin = 0.02  # accuracy above chance: collapsed
  # accuracy above chance: had learned; and at least 3 standard errors of an
  # accuracy by chance on the validation split
  config.governor.above_margin = 0.10
  config.governor.responsible_epochs = 3  # epochs a changed slot is suspected
  config.governor.max_rollbacks = 3  # rollbacks before the run fails

  config.checkpoint = ConfigDict()
  config.checkpoint.every_epochs = 1  # epochs between two checkpoints
  config.checkpoint.keep_last = 3  # newest checkpoints kept
  config.checkpoint.keep_best = 1  # best checkpoints kept (validation accuracy)

  config.oona = ConfigDict()
  # whether events are brought to the disk at once, or with each checkpoint
  config.oona.fsync = True
  # server to which events are copied, such as redis://localhost:6379/0; "" =
  # none. ESPER_REDIS_PASSWORD, where set, is its password
  config.oona.redis_url = ""
  config.oona.redis_stream = "esper"  # key of the stream there
  # that a run waits at its end for the stream to have every event
  config.oona.redis_flush_seconds = 5.0

  config.nissa = ConfigDict()
  # whether the run directory gets a report.html, rewritten while it trains
  config.nissa.report = True
  # whether it gets a folder of event files for TensorBoard
  config.nissa.tensorboard = False
  config.nissa.wandb = ""  # project at Weights & Biases; "" = none
  # (a, b): JAX's profiler traces the steps from a to before b into the folder
  # profile of the run directory; () = none
  config.nissa.profile_steps = ()

  # more than one device; results differ by rounding with their number
  config.mesh = ConfigDict()
  config.mesh.data = 1  # devices over which a batch is cut; 0 = all
  # replicated = parameters on every device; sharded = large ones are cut
  config.mesh.parameters = "replicated"
  config.mesh.shard_from = 65_536  # elements from which one is large

  config.urza = ConfigDict()
  config.urza.modules = ()  # Python modules imported first; they register
  # folder of kernels and their evidence, beside the package's own and
  # ~/.local/share/esper_jax/urza; "" = none
  config.urza.dir = ""
  # folders whose kernels may run although others can write there
  config.urza.trusted = ()
  # what a kernel must have behind it before it runs here: validated = a GPU of
  # this kind judged it right and faster; probed = a first look on this device
  # found it right; nothing = nothing spoke against it
  config.urza.require = "validated"
  return config
