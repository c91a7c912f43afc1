# Copyright the pyro_neuralrg contributors.
# SPDX-License-Identifier: Apache-2.0
