"""The training module: corpora, augmentation, fitting, evaluation. It uses the job's own audio, gate and features."""
