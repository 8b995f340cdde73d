# SPDX-License-Identifier: Apache-2.0
"""What building a model changes in torch, other threads neither see nor make last."""

import threading

import torch

from auto_round.torch_defaults import BUILDING, ordinary_defaults


def test_a_model_that_another_thread_builds_is_waited_for():
    found = []

    def other():
        with ordinary_defaults():
            found.append(torch.get_default_dtype())

    thread = threading.Thread(target=other)
    with BUILDING:
        torch.set_default_dtype(torch.bfloat16)
        try:
            thread.start()
            thread.join(0.2)
            waited, kept = thread.is_alive(), torch.get_default_dtype()
        finally:
            torch.set_default_dtype(torch.float32)
    thread.join()
    assert (waited, kept, found) == (True, torch.bfloat16, [torch.float32])
    assert torch.get_default_dtype() == torch.float32


def test_who_builds_is_not_kept_waiting_by_itself():
    with BUILDING, torch.device("meta"):
        torch.set_default_dtype(torch.bfloat16)
        try:
            with ordinary_defaults():
                assert torch.ones(1).dtype == torch.float32
                assert not torch.ones(1).is_meta
            assert torch.ones(1).dtype == torch.bfloat16
            assert torch.ones(1).is_meta
        finally:
            torch.set_default_dtype(torch.float32)
