"""Three recurrent cells, written out: RNN, GRU and LSTM.

A cell carries a vector h from word to word. The RNN writes all of it anew at every step, so what
it read long ago fades, and so do the gradients on their way back. Gates decide what to keep:

    RNN     h' = tanh(a + h U)                           Elman 1990

    GRU     r, z = sigmoid(a_r + h U_r), sigmoid(a_z + h U_z)     reset, update
            n  = tanh(a_n + r (h U_n + b_n))             new content      (Cho et al. 2014)
            h' = z h + (1 - z) n                         z = 1: nothing is forgotten

    LSTM    o, i, f = sigmoid(a_o + h U_o), ...          output, input, forget
            g  = tanh(a_g + h U_g)                       new content
            c' = f c + i g                               f = 1, i = 0: nothing is forgotten
            h' = o tanh(c')                              (Hochreiter & Schmidhuber 1997, Gers 2000)

a = x W + b needs no state: it is one large product for all steps, before the loop. In a loop step
there is one product h U for all gates together.

The backward passes are written out (backpropagation through time, Werbos 1990). All their factors
that do not depend on later steps are computed for all steps at once, before the loop; and the
gradient of U, a sum of T small products, is one large one, after it. That is why in bfloat16 these
cells train as fast as torch.nn's, or faster (in float32 its LSTM is faster: README.md).

Shapes: B batch, T time, I size of the input, H hidden units
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

tanh_backward = torch.ops.aten.tanh_backward  # (g, y = tanh(x)) -> g (1 - y^2)
sigmoid_backward = torch.ops.aten.sigmoid_backward  # (g, y = sigmoid(x)) -> g y (1 - y)


def backwards(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The steps of several tensors (T, ...) side by side, from the last to the first."""
    return zip(*(reversed(tensor.unbind(0)) for tensor in tensors), strict=True)


class Recurrence(torch.autograd.Function):
    """h_t = tanh(a_t + h_{t-1} U) for T steps, and its backward pass, written out.

    Backpropagation through time (Werbos 1990), from the last step to the first:

        d_t = (1 - h_t^2) * (g_t + d_{t+1} U^T)      d_t: gradient of a_t, g_t: of the output h_t
        gradient of U: the sum over t of h_{t-1}^T d_t

    Autograd would do the same; but that sum, T small products for it, is one large one here.
    """

    @staticmethod
    def forward(ctx, a: Tensor, h: Tensor, U: Tensor) -> Tensor:
        """a (T, B, H), h (B, H), U (H, H) -> outputs h_1 to h_T (T, B, H)"""
        outputs = torch.empty_like(a)
        for t in range(len(a)):
            h_before = h if t == 0 else outputs[t - 1]
            torch.mm(h_before, U, out=outputs[t]).add_(a[t]).tanh_()
        ctx.save_for_backward(outputs, h, U)
        return outputs

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """g (T, B, H), the gradient of the outputs -> the gradients of a, h and U"""
        outputs, h, U = ctx.saved_tensors
        d, later = torch.empty_like(outputs), g[-1]
        for t in reversed(range(len(g))):
            # (1 - h_t^2) * later, straight into d[t]
            torch.ops.aten.tanh_backward.grad_input(later, outputs[t], grad_input=d[t])
            later = d[t] @ U.t()
            if t > 0:
                later += g[t - 1]
        h_before = torch.cat((h[None], outputs[:-1]))  # (T, B, H)
        return d, later, h_before.flatten(0, 1).t() @ d.flatten(0, 1)


class RNNLayer(nn.Module):
    """h_t = tanh(x_t W + h_{t-1} U + b), the recurrence of Elman (1990), for T steps."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.W = nn.Linear(input_size, hidden_size)  # holds b as well
        self.U = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(self, x: Tensor, h: Tensor | None) -> tuple[Tensor, Tensor]:
        """x (T, B, input_size), h (B, H) -> outputs (T, B, H), the last h (B, H)"""
        # x W + b needs no state, so it is one large matrix product for all steps, outside the
        # loop. Only h U has to wait for the step before: that wait is why RNNs train slowly.
        a = self.W(x)  # (T, B, H)
        h = a.new_zeros(a.shape[1:]) if h is None else h.to(a.dtype)
        outputs = Recurrence.apply(a, h, self.U.weight.t().to(a.dtype))
        return outputs, outputs[-1]


class GRURecurrence(torch.autograd.Function):
    """The GRU's T steps, and back."""

    @staticmethod
    def forward(ctx, a: Tensor, h: Tensor, U: Tensor, b: Tensor) -> Tensor:
        """a (T, B, 3H), h (B, H), U (H, 3H), b (3H,) -> outputs h_1 to h_T (T, B, H)"""
        H = h.size(1)
        gates, outputs = torch.empty_like(a), a.new_empty(*a.shape[:2], H)
        offers = torch.empty_like(outputs)  # h U_n + b_n, before the reset gate
        h_before = h
        for a_t, gates_t, offer, out in zip(a, gates, offers, outputs, strict=True):
            s = torch.addmm(b, h_before, U)  # (B, 3H)
            rz = torch.add(a_t[:, : 2 * H], s[:, : 2 * H], out=gates_t[:, : 2 * H]).sigmoid_()
            r, z = rz.chunk(2, dim=1)
            offer.copy_(s[:, 2 * H :])
            n = torch.addcmul(a_t[:, 2 * H :], r, offer, out=gates_t[:, 2 * H :]).tanh_()
            h_before = torch.lerp(n, h_before, z, out=out)  # n + z (h - n)
        ctx.save_for_backward(gates, offers, outputs, h, U)
        return outputs

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """g (T, B, H), the gradient of the outputs -> the gradients of a, h, U and b"""
        gates, offers, outputs, h, U = ctx.saved_tensors
        r, z, n = gates.unflatten(2, (3, -1)).unbind(2)  # (T, B, H) each
        h_before = torch.cat((h[None], outputs[:-1]))
        # d (T, B, 3, H), gradients of h U + b: at first per unit of the gradient of h'
        per_n = tanh_backward(1 - z, n)
        d = torch.stack(
            (sigmoid_backward(per_n * offers, r), sigmoid_backward(h_before - n, z), per_n * r), 2
        )
        totals, later = torch.empty_like(outputs), torch.zeros_like(h)
        for d_t, z_t, g_t, total in backwards(d, z, g, totals):
            torch.add(g_t, later, out=total)  # the gradient of h', from its output and later steps
            d_t.mul_(total[:, None])
            later = torch.addmm(total * z_t, d_t.flatten(1), U.t())
        d_a = torch.cat((d[:, :, :2], (per_n * totals)[:, :, None]), 2)
        d = d.flatten(0, 1).flatten(1)  # (T B, 3H)
        return d_a.flatten(2), later, h_before.flatten(0, 1).t() @ d, d.sum(0)


class GRULayer(nn.Module):
    """The gated recurrent unit (Cho et al. 2014, in the form of torch.nn.GRU), for T steps."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.W = nn.Linear(input_size, 3 * hidden_size)  # for r, z, n
        self.U = nn.Linear(hidden_size, 3 * hidden_size)

    def forward(self, x: Tensor, h: Tensor | None) -> tuple[Tensor, Tensor]:
        """x (T, B, input_size), h (B, H) -> outputs (T, B, H), the last h (B, H)"""
        a = self.W(x)  # (T, B, 3H)
        h = a.new_zeros(a.size(1), self.U.in_features) if h is None else h.to(a.dtype)
        U, b = self.U.weight.t().to(a.dtype), self.U.bias.to(a.dtype)
        outputs = GRURecurrence.apply(a, h, U, b)
        return outputs, outputs[-1]


class LSTMRecurrence(torch.autograd.Function):
    """The LSTM's T steps, and back."""

    @staticmethod
    def forward(ctx, a: Tensor, h: Tensor, c: Tensor, U: Tensor) -> tuple[Tensor, Tensor]:
        """a (T, B, 4H), h and c (B, H), U (H, 4H) -> outputs h_1 to h_T (T, B, H), c_T (B, H)"""
        H = h.size(1)
        gates, outputs = torch.empty_like(a), a.new_empty(*a.shape[:2], H)
        cells, squashed = torch.empty_like(outputs), torch.empty_like(outputs)  # c, tanh(c)
        h_before, c_before = h, c
        for a_t, gates_t, cell, tanh_c, out in zip(a, gates, cells, squashed, outputs, strict=True):
            torch.mm(h_before, U, out=gates_t).add_(a_t)  # (B, 4H)
            o, i, f = gates_t[:, : 3 * H].sigmoid_().chunk(3, dim=1)
            g = gates_t[:, 3 * H :].tanh_()
            c_before = torch.mul(f, c_before, out=cell).addcmul_(i, g)
            h_before = torch.mul(o, torch.tanh(cell, out=tanh_c), out=out)
        ctx.save_for_backward(gates, cells, squashed, outputs, h, c, U)
        return outputs, cells[-1].clone()

    @staticmethod
    def backward(ctx, g_h: Tensor, g_c: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """g_h (T, B, H), g_c (B, H): gradients of the outputs, c_T -> those of a, h, c and U"""
        gates, cells, squashed, outputs, h, c, U = ctx.saved_tensors
        o, i, f, g = gates.unflatten(2, (4, -1)).unbind(2)  # (T, B, H) each
        c_before = torch.cat((c[None], cells[:-1]))
        # d (T, B, 4, H), gradients of a: at first per unit of the gradient of h' (o) or c'
        d = gates.new_empty(*gates.shape[:2], 4, h.size(1))
        d_o, d_i, d_f, d_g = d.unbind(2)
        sigmoid_backward.grad_input(squashed, o, grad_input=d_o)
        sigmoid_backward.grad_input(g, i, grad_input=d_i)
        sigmoid_backward.grad_input(c_before, f, grad_input=d_f)
        tanh_backward.grad_input(i, g, grad_input=d_g)
        per_c = tanh_backward(o, squashed)
        later_h, later_c = torch.zeros_like(h), g_c
        for d_t, per_c_t, f_t, g_t in backwards(d, per_c, f, g_h):
            later_h = later_h + g_t  # the gradient of h', from its output and from later steps
            later_c = torch.addcmul(later_c, later_h, per_c_t)  # of c'
            d_t[:, 0].mul_(later_h)
            d_t[:, 1:].mul_(later_c[:, None])
            later_c = later_c * f_t
            later_h = d_t.flatten(1) @ U.t()
        h_before = torch.cat((h[None], outputs[:-1])).flatten(0, 1)
        return d.flatten(2), later_h, later_c, h_before.t() @ d.flatten(2).flatten(0, 1)


class LSTMLayer(nn.Module):
    """Long short-term memory (Hochreiter & Schmidhuber 1997; forget gate: Gers et al. 2000)."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.W = nn.Linear(input_size, 4 * hidden_size)  # for o, i, f, g
        self.U = nn.Linear(hidden_size, 4 * hidden_size, bias=False)
        with torch.no_grad():  # at first little is forgotten (Jozefowicz et al. 2015)
            self.W.bias[2 * hidden_size : 3 * hidden_size] += 1

    def forward(self, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """x (T, B, input_size), state (2, B, H): h and c -> outputs (T, B, H), the last state"""
        a = self.W(x)  # (T, B, 4H)
        if state is None:
            state = a.new_zeros(2, a.size(1), self.U.in_features)
        h, c = state.to(a.dtype)
        outputs, c = LSTMRecurrence.apply(a, h, c, self.U.weight.t().to(a.dtype))
        return outputs, torch.stack((outputs[-1], c))
