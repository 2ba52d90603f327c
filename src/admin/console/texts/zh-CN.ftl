# Sentences of the console. A key has the same values in each language.

## Frame

nav-overview = 概览
nav-devices = 设备
nav-enrollments = 注册组
nav-import = 导入
nav-pages = 页面
nav-skip = 跳到内容
role-operator = 操作员
role-viewer = 查看者
footer-server = 截至 {$now} · {$host} 上的 certdist {$version}，启动于 {$started} · {$database}
live-stale = 服务器没有应答，下面的数字已经过时。
live-ended = 会话已结束，下面的数字已经过时。
go-to-overview = 前往概览
page-not-found-title = 没有这个页面
page-not-found = 这个地址没有页面。{$link}
form-expired = 表单已过期
form-expired-text = 该表单不属于当前会话，因此没有做任何更改。请重新打开页面再操作一次。
signed-out = 您已退出登录
signed-out-text = 表单到达之前会话已经结束，因此没有做任何更改。请登录后再操作一次。
signed-out-already = 您的会话此前已经结束。请登录后继续。
operators-only = 只有操作员可以这样做
operators-only-text = 您以查看者身份登录，可以查看一切，但不能更改。更改需要在配置中设置 {$role}。
database-failed = 数据库出错
database-failed-text = 没有做任何更改。数据库报告：
database-failed-advice = 如果问题持续存在，请检查磁盘是否已满，以及是否有其他进程占用该文件。
console-off = 还没有可以登录的用户
console-off-text = 尚未配置用户，因此控制台处于关闭状态。健康状态和指标位于 {$health} 和 {$metrics}。
console-off-hash = 要启用它，请生成密码的哈希值：
console-off-config = 将其写入 {$file}，然后重新加载 certdist（{$command} 或 SIGHUP）。

## Devices

column-enrollment = 注册组
column-state = 状态
column-issued = 首次发放
column-job = 任务
count = {$count}
cancel = 取消
copy = 复制
copied = 已复制
and-more = 以及另外 {$count} 项
under-one-percent = 不到 1 %
state-imported = 已导入
state-waiting = 正在注册
state-registered = 已注册
state-unissued = 已注册，尚未发放
state-issued = 已发放
state-activated = 已激活
state-refused = 注册被拒绝
state-disabled = 在此禁用
state-cloud-disabled = 在物联网平台被禁用
state-cloud-deleted = 在物联网平台被删除
devices-search = 设备
devices-search-button = 搜索
devices-search-hint = 标签上的内容：序列号、任意写法的 MAC 地址、设备名称、IotId，或 ID 的开头或结尾。
devices-conditions = 条件
devices-any-state = 任意
devices-from = 首次发放起始日（UTC）
devices-to = 首次发放截止日（UTC）
devices-apply = 应用
devices-all = 显示所有设备
devices-total = {$count} 台设备，按 ID 排序
devices-more-than = 超过 {$count} 台设备，按 ID 排序。
devices-count = 全部计数
devices-counted = · 计数时间 {$time}
devices-previous = 上一页
devices-next = 下一页
devices-none = 没有找到
devices-none-text = 没有这样的设备。导入了吗？是否有其他条件的限制？
devices-partly = 尚未全部显示
devices-partly-text = 设备表很大。搜索已查看到设备 {$device}。
devices-go-on = 继续搜索
devices-unreadable = 无法读取条件
devices-bad-state = 没有这种状态。请从列表中选择。
devices-bad-date = 日期的格式为 2026-11-28。
devices-bad-part = 页面地址不完整。请重新搜索。
where-enrollment = 注册组 {$value}
where-product = 产品 {$value}
where-state = 状态：{$value}
where-refusal = 拒绝原因：{$value}
where-from = 首次发放自 {$value}
where-to = 首次发放至 {$value}
where-begins = ID 开头为 {$value}
where-ends = ID 结尾为 {$value}
where-name = 设备名称 {$value}
where-iotid = IotId {$value}

## A list of devices

list-title = 多台设备
list-label = 设备 ID、设备名称或 IotId
list-hint = 每行一个，最多 {$most} 个，可从电子表格复制。
list-button = 查找
list-found = {$lines} 行中找到 {$found} 台设备，显示 {$shown} 台
list-missing = {$count} 行没有对应的设备
list-missing-text = 这些行被忽略。请检查是否有输入错误，或导入这些设备。
list-time-up = 没有足够的时间按设备名称或不同的大小写查找所有这些行。请分批发送列表。
list-other-case = {$count} 行按不同的大小写匹配
list-empty = 列表为空
list-empty-text = 请至少粘贴一行。
list-not-read = 没有读取列表
list-too-many = 列表超过 {$most} 行。请分几次提交，或使用 certdist device --file。

## Actions

action-disable = 禁用
action-enable = 启用
action-reset = 重置
action-register = 立即注册
action-delete = 删除
action-disable-text = 设备从下一次请求起不再获得证书（4.03）。物联网平台不会得到通知：已发放的证书在那里仍然有效。
action-enable-text = 设备可以按其注册组的策略再次获得证书。
action-reset-text = 清除首次发放和拒绝记录，设备可以再次获取证书或重新注册。
action-register-text = 在设备请求之前按账号的速率逐台在物联网平台注册。刚上电的设备最多等待几秒。对于整个注册组，certdist register 使用批量注册，速度更快。
action-delete-text = 从设备表中删除该设备，并删除其密钥及保存在本服务器上的证书。物联网平台上的设备保留。
bulk-title = 对所有这些设备执行操作
bulk-of-list = 对列表中的设备执行操作
bulk-action = 操作
bulk-preview-button = 预览
bulk-hint = 先显示涉及多少台设备，暂不更改。
bulk-heading = {$action}：{$count} 台设备
bulk-confirm = {$action} {$count} 台设备
bulk-confirm-title = 确定要这样做吗？
bulk-whole-table = 设备表中的所有设备，没有任何条件。
bulk-nothing = 没有涉及任何设备。
bulk-unchanged = 已处于目标状态的设备保持不变。如果之后有更多设备符合条件，任务会在达到此数量后停止。
bulk-removes-issues = {$count} 台设备的首次发放记录将被清除。
bulk-removes-refusals = {$count} 台设备的拒绝记录将被清除。
bulk-removes-certificates = {$count} 台设备的证书将被移除，因为它们已在物联网平台被删除。设备下次请求时会以相同名称重新注册。
bulk-removes-certificates-here = 此处 {$count} 台设备的证书将被移除。它们在物联网平台仍然有效。
bulk-removes-more = 表太大，未能及时读完：以上是最小数量。
bulk-sure = 我要删除 {$count} 台设备。
bulk-samples = 其中前 {$count} 台
bulk-refused = 没有做任何更改
bulk-bad-action = 没有这种操作。请从列表中选择。
bulk-not-confirmed = 操作没有得到确认，或其预览已失效。请预览后在预览页面确认。
bulk-not-counted = 未能及时计数。请选择更严格的条件，或选择一个注册组。

## Jobs

jobs-title = 任务
jobs-since = 服务器于 {$time} 启动以来的作业，以及最近 24 小时内没有结束记录的作业。
jobs-none = 没有任务
jobs-none-text = 确认对多台设备的操作后，任务就会开始。
jobs-busy = 其他任务正在运行
jobs-busy-text = 没有做任何更改。请等待其中一个结束或停止一个，然后再次确认。
jobs-meanwhile = 其间已有另一个作业开始
jobs-meanwhile-text = 没有任何更改。在您预览之后，另一位操作员开始了可能更改相同设备的作业。请查看该作业，然后重新预览您的操作。
jobs-other = 查看另一个作业
jobs-running = 有作业正在运行
jobs-running-text = 它可能同时更改相同的设备。
job-running = 正在运行
job-running-text = 关闭此页面后任务仍会继续。
job-complete = 已完成
job-complete-text = 所有设备均已处理。
job-complete-with-failures = 已完成，但有失败
job-failures-text = 请先解决下面的原因。
job-more = 已完成，但现在有更多设备
job-more-text = 已处理完确认的数量。现在有更多设备符合条件：请再次预览该操作。
job-stopped = 已停止
job-stopped-text = {$who} 停止了该任务。已完成的操作保留。
job-shutting-down = 随服务器结束
job-shutting-down-text = 服务器已关闭。已完成的操作保留。
job-broken = 失败
job-broken-text = 数据库出错：{$error}。已完成的操作保留。
job-unrecorded = 无法确定执行到哪一步
job-unrecorded-text = 审计日志记录了任务的开始，但没有它的结束：运行它的服务器在中途停止或出错，或者任务正在另一台服务器上运行。它做的每项更改都在审计日志中。
job-again = 对于其余设备，请再次预览并确认该操作：已完成的设备保持不变。
job-again-reset = 请不要直接重复重置：已重置、并在此之后取得证书的设备会被再次重置。请用能排除这些设备的条件重新预览。
job-from-log = 根据审计日志：此服务器于 {$time} 启动，或此后已执行过许多任务。
job-unknown = 没有这个任务
job-unknown-text = 没有任务使用这个编号，或时间太久，审计日志中已没有它的记录。
job-not-found = 此服务器不知道这个任务
job-not-found-text = 审计日志太大，未能及时查完：certdist audit export 会显示任务是否已结束。重复该操作之前，请再次预览。
job-stop = 停止
job-stop-text = 再处理几台设备后结束任务。已完成的操作保留。
job-done = 已处理
job-done-of = {$done} / {$all}
job-changed = 已更改
job-unchanged = 原本已符合
job-absent = 不在设备表中
job-failed = 失败
job-disabled = 已跳过：在此处被禁用
job-refused = 已跳过：被 物联网平台拒绝；请先重置
job-by = 操作员
job-began = 开始
job-ended = 结束
job-expected = 预计结束
job-audit = 每项更改都记录在审计日志中，并附有操作员的名字。
job-reasons = 失败原因
job-reason = {$count} 台：{$reason}，第一台是 {$device}
job-no-answer = 物联网平台未及时应答；以后的请求或任务会重试

## A device

device-row = 设备表中的内容
device-actions = 操作
device-viewer = 您以查看者身份登录。只有操作员可以更改设备。
done-disable = 已禁用。
done-enable = 已启用。
done-reset = 已重置。
waiting-title = 等待准入的设备
waiting-text = 这些设备持有其注册组的密钥，但不在设备表中。对于共享密钥，任何持有密钥的人都可以编造设备 ID：只准入您认识的设备。certdist device admit 可批量准入。
waiting-none = 无。
waiting-more = 共有 {$count} 台设备在等待；certdist device waiting 会全部列出。
waiting-admit = 准入
waiting-dismiss = 忽略
done-admit = 已加入设备表，下次请求时将取得证书。
done-admit-known = 它已在设备表中。
done-admit-taken = 未准入：另一台设备已使用其名称。请以其他 deviceName 导入。
done-dismiss = 已忽略。如果它再次请求，会再次等待。
confirm-title = {$action} {$device}？
removes-issue = {$time} 的首次发放记录将被清除。
removes-refusal = 拒绝记录将被清除：{$reason}
removes-certificate = 证书将被删除，因为设备已在物联网平台被删除。下一次请求将以相同名称重新注册。
removes-certificate-here = 此处的证书将被删除。它在物联网平台仍然有效。
removes-row = 该行及密钥将被删除。设备的请求将得到 4.04。
removes-nothing = 没有需要清除的内容。
keeps-certificate = 证书保持不变。
changed-meanwhile = 没有做任何更改：设备已不是您看到的状态
changed-meanwhile-text = 此后其他操作员或设备本身更改了它。现在显示的是当前状态。请重新决定。
fact-product = ProductKey
fact-name = 设备名称
fact-reissue = 可获取证书
fact-iotid = IotId
fact-certificate = 证书
fact-certificate-yes = 有；控制台不显示其密钥
fact-certificate-no = 尚无
fact-registered = 注册
fact-activated = 激活
fact-claim = 注册进度
fact-claim-held = 自 {$time} 起进行中
fact-claim-left = 始于 {$time}，尚未完成
fact-refusal = 拒绝原因
fact-refusal-others = 具有此原因的所有设备
refusal-name-taken = 该名称在物联网平台已存在，且不是由本服务器注册的
fact-seen = 上次应答
reissue-always = 不限次数
reissue-once = 一次
reissue-window = 首次之后 {$span} 内
absent-title = 不在设备表中
absent = 没有这台设备
absent-text = 设备表中没有 ID 为 {$device} 的设备。使用此 ID 的请求将得到 4.04。
absent-asked = 它于 {$time} 使用注册组 {$enrollment} 的密钥发出过请求。
absent-import = 导入
absent-search = 查找其他设备

## Advice on a device

advice-not-configured = 其注册组未配置
advice-not-configured-text = 其注册组 {$enrollment} 不在配置中，因此设备无法登录。请将该注册组加入配置，或将设备导入其他注册组。
advice-disabled = 在此禁用
advice-disabled-text = 操作员禁用了该设备：它得不到证书，其请求将得到 4.03。
advice-disabled-issued = 它已获取的证书在物联网平台仍然有效。要禁用该设备，请在那里也将其禁用。
advice-cloud-deleted = 在物联网平台被删除
advice-cloud-deleted-text = 该设备已在物联网平台被删除，其证书不再有效。如果设备仍在使用，请在此重置：它的下一次请求将以相同名称重新注册。
advice-cloud-disabled = 在物联网平台被禁用
advice-cloud-disabled-text = 该设备在物联网平台被禁用：无法用其证书在那里登录。请在物联网平台启用它。
advice-other-key = 该设备使用了其他注册组的密钥
advice-other-key-text = {$time} 该设备使用注册组 {$other} 的密钥请求，但它在设备表中属于 {$own}，因此被拒绝。请查看其标签。如果设备表有误，请将设备导入 {$other}：它会移到该组，并采用其产品。如果固件有误，请刷入 {$own} 的固件。
absent-yours = 如果该 ID 在工厂清单上，请导入它。
absent-not-yours = 如果不在，请不要导入：没有发放任何东西。可能有人持有 {$enrollment} 的密钥；更换密钥需要为该注册组的每台设备重新刷写，因此请先确认。
advice-refused = 被物联网平台拒绝
advice-refused-text = 物联网平台拒绝该设备：{$reason}。请在物联网平台解决原因，然后在此重置设备：它的下一次请求将完成注册。
advice-name-taken = 其名称在物联网平台已被占用
advice-name-taken-text = 名称 {$name} 在物联网平台已存在，且不是由本服务器注册的。请在那里核对是否就是这台设备。如果是，请为其注册组设置 existing = "adopt"，或在那里删除该设备；如果不是，请为其中一台设备另设 deviceName。然后在此重置设备。
advice-iot-id-taken = 其 IotId 属于另一台设备
advice-iot-id-taken-text = 表中的另一台设备具有此设备的 IotId：{$reason}。然后在此重置设备。
advice-issued = 已有证书，不再发放
advice-asks-again = 再次请求并被拒绝
advice-asks-again-text = 设备于 {$time} 再次请求证书，被以 4.03 拒绝。
advice-not-open = 其注册组尚未开放
advice-not-open-text = 从 {$time} 起它可以取得首个证书。在此之前，每次请求都会被要求稍后重试。
advice-closed = 其注册组已关闭
advice-closed-text = 它还没有过证书，而其注册组已于 {$time} 关闭。如果仍允许它取得证书，请在配置中设置更晚的 closes，然后重新加载。
advice-full = 其注册组已满
advice-full-text = 其注册组已有 {$number} 台设备拥有证书，max_devices 不允许更多。如果允许它取得证书，请在配置中设置更大的 max_devices，然后重新加载。
advice-filling = 其注册组即将满额
advice-filling-text = 正在进行的注册占用了其注册组的最后名额。如果其中一个失败，该设备下次请求时即可得到名额。
advice-once = 其注册组的策略只允许发放一次。
advice-window-over = 它可以再次获取证书的时间已于 {$time} 结束。
advice-window-open = 它可以在 {$time} 之前再次获取证书。
advice-issued-text = 如果设备丢失了证书，请重置它。
advice-stopped = 未注册：物联网平台拒绝调用
advice-stopped-text = 该设备还没有证书，因为物联网平台目前拒绝本服务器的调用：{$reason}。这不是设备的问题。{$overview}说明了处理方法；之后设备会自动重试。
advice-registering = 正在注册
advice-registering-text = 它自 {$time} 起正在物联网平台注册。如果持续出现，{$overview}会说明原因。
advice-left = 注册尚未完成
advice-left-text = 其注册始于 {$time}，后被中断。服务器会继续，最迟在设备的下一次请求时。
advice-last-refused = 上一次请求被拒绝
advice-last-refused-text = 设备于 {$time} 请求并被拒绝：{$reason}。如果此后已解决原因，它的下一次请求将得到应答。
advice-came = 曾经来过
advice-came-text = 设备上次得到应答是在 {$time}，此后没有获取证书。它的下一次请求将得到应答。
advice-later = 被要求稍后重试
advice-later-text = 设备于 {$time} 请求，应答为：{$answer}。它会自行重试。如果持续出现，概览会说明原因。
advice-not-come = 尚未来过
advice-new-text = 该设备在设备表中，但没有它的任何请求。它的首次请求会在物联网平台注册它。如果它应当已经请求：它通电了吗？能连到本服务器吗？密钥正确吗？{$handshakes}
advice-ready-text = 其证书已就绪，但没有该设备的任何请求。如果它应当已经请求：它通电了吗？能连到本服务器吗？密钥正确吗？{$handshakes}
advice-well = 一切正常
advice-well-text = 该设备已获取证书，并已在物联网平台登录。无需操作。
advice-has-it = 已有证书
advice-has-it-text = 该设备已获取证书，但尚未见到它在物联网平台登录。如果它没有出现：它能否连到物联网平台，是否保存了证书？

## History of a device

history-title = 历史
history-by = 操作者 {$who}
history-identity = 身份标识 {$who}
history-invalid = 不在设备表中，或不属于其密钥的注册组
history-from = 来自 {$address}
history-times = 自 {$time} 起 {$count} 次
history-more = 只显示最新的 {$most} 条；全部内容见 certdist audit export --device。
history-imports = 导入记录保留 30 天，最多一千次。更早的导入只在审计日志中，且不含设备。
event-issued = 已发放
event-reissued = 再次发放
event-refused = 被拒绝
event-registered = 已注册
event-disabled = 已禁用
event-enabled = 已启用
event-reset = 已重置
event-deleted = 已删除
event-ordered = 已下令
event-rotated = 已轮换
event-cancelled = 已取消
event-imported = 已导入
event-admitted = 已准入
event-undone = 撤销导入
event-sealed = 密钥已加密
event-restored = 从备份恢复
event-began = 任务开始
event-ended = 任务结束
event-pruned = 日志已清理
event-dropped = 条目已丢弃

## Enrollments

enrollments-counted = 各注册组设备的进度。计数时间 {$time}。点击数字可查看对应设备。
enrollments-none = 没有注册组
enrollments-none-text = 请在配置中添加注册组，并向其导入设备。
enrollments-none-found = 没有名称包含此内容的注册组。
enrollments-search = 名称包含以下内容的注册组
enrollments-about = {$kind} · 产品 {$product} · 发放 {$reissue}
enrollments-opens = 从 {$time} 起发放首个证书。
enrollments-closes = 从 {$time} 起不再发放首个证书。
enrollments-places = 最多 {$max} 台设备中，已有 {$count} 台拥有证书。
enrollments-holds = 不在设备表中的设备需等待准入。
enrollments-admits = 不在设备表中的设备在请求时自动加入。
key-individual = 各设备独立密钥
key-derived = 派生密钥
key-shared = 共享密钥
enrollments-not-configured = 未配置
enrollments-not-configured-text = 其设备没有可用于登录的密钥。请将该注册组加入配置。
enrollments-imported = 已导入
enrollments-registered = 已注册
enrollments-registered-text = 在物联网平台，证书在此
enrollments-issued = 已发放
enrollments-issued-text = 已获取证书
enrollments-activated = 已激活
enrollments-activated-text = 已在物联网平台登录
enrollments-waiting = { $number ->
   *[other] {$count} 台正在等待注册。
}
enrollments-rate-later = 注册速度尚不清楚。
enrollments-no-rate = 最近 {$seconds} 秒内没有设备注册成功。
enrollments-rate = 每分钟注册 {$rate} 台。
enrollments-rate-end = 按此速度，正在等待的设备将于 {$time} 全部注册完成。
enrollments-rate-job = 有任务正在注册更多设备，其页面显示预计结束时间。{$jobs}
enrollments-refused = {$count} 台被物联网平台拒绝，原因如下：
enrollments-more-reasons = 以及另外 {$count} 种原因
enrollments-disabled = {$count} 台在此禁用。
enrollments-key-current = 原密钥（key）
enrollments-key-next = 新密钥（key_next）
enrollments-key-used = {$key}最近一次使用：{$time}。自 {$since} 起共 {$count} 次握手。
enrollments-key-unused = {$key}自 {$since} 起未被使用。
enrollments-key-unknown = {$key}：还没有服务器报告其使用情况。

## Signing in

sign-in = 登录
sign-out = 退出
sign-in-name = 用户名
sign-in-password = 密码
sign-in-hint = 用户在 certdist.toml 中配置。忘记密码？用 {$command} 生成新的哈希值。
not-signed-in = 登录失败
sign-in-form-expired = 表单已过期，或者浏览器禁用了 Cookie。请重试。
sign-in-wrong = 用户名或密码错误。
sign-in-too-often = 尝试次数过多。请在 {$seconds} 秒后重试，或使用以前登录过的浏览器。

## Overview

overview-as-of = 截至 {$time}
all-is-well = 一切正常
nothing-to-do = 无需处理。已检查：
no-device-came = 最近一小时没有设备发出请求
no-device-came-text = 没有已知的故障。如果现在应有设备请求：它们通电了吗？能连到本服务器吗？已检查：
too-early = 现在还无法判断
too-early-text = 服务器于 {$time} 启动，此后没有出现故障。请将一台设备通电，并在 {$until} 之后再看。如果届时“请求”下的数字仍为 0，说明设备无法连到本服务器：请检查设备的网络。已检查：
concerns-count = 共 {$count} 项需要查看，最严重的在前。
too-early-counting = 目前没有已知的故障，但仍在统计设备表。已检查：
looked-requests = {$time} 以来的请求和握手：已发放 {$served} 次，没有失败。
looked-requests-mended = {$time} 以来的请求：已发放 {$served} 次；{$unserved} 次未发放，但这些设备的问题都已不存在。
looked-requests-none = {$time} 以来的请求：没有。
looked-cloud = 对物联网平台的调用：没有失败；最近一次成功于 {$time}。
looked-cloud-idle = 对物联网平台的调用：启动以来还不需要调用，因此其状态未知。
looked-no-cloud = 对物联网平台的调用：没有配置，也没有设备需要。
looked-table = 设备表：{$time} 共 {$count} 台设备；没有被拒绝、被删除或缺少注册组的设备。
looked-table-not-yet = 设备表：正在统计。
looked-server = 本服务器的数据库写入、时钟和网络：未发现异常。
label-cause = 原因：
label-said = 错误信息：
label-remedy = 处理方法：
show-concerned = 查看受影响的设备
show-handshakes = 查看身份标识和地址
fact-since = 自 {$time} 起
fact-since-or-earlier = 自 {$time} 起（此前没有记录）
fact-at = 发生于 {$time}
fact-last = 最近一次 {$time}
fact-over = {$time} 之后没有再发生
fact-counted = 统计于 {$time}
course-over = 此后没有再发生。
course-untested = 此后没有再进行此类调用，原因可能已经消除。下一台注册的设备会证实这一点。
list-comma = 、
enrollment-pair = 设备表中属于 {$own}，却使用 {$key} 的密钥请求
fact-devices = {$count} 台设备
overview-requests = 请求
overview-results = 应答
overview-handshakes = 握手
range-hour = 一小时
range-day = 一天
range-week = 一周
results-result = 结果
results-count = 数量
results-share = 占比
kind-served = 已发放证书
kind-invalid = 不在设备表中，或不属于其密钥的注册组
kind-not-yours = 请求其他设备的证书
kind-disabled = 在此处被禁用
kind-issued = 证书已发放过
kind-closed = 注册组已关闭或已满
kind-too-many = 请求过多
kind-malformed = 无法理解的请求
kind-operator = 注册被拒绝
kind-later = 被要求稍后重试
kind-not-open = 注册组尚未开放
kind-held = 等待准入
kind-timed-out = 未能及时从物联网平台取得证书
handshake-completed = 成功
handshake-wrong-key = 密钥错误或身份标识未知
handshake-silent = 客户端停止应答
handshake-other = 其他失败
tile-sessions = 会话
tile-sessions-about = 当前打开的 DTLS 会话
tile-registrations = 注册
tile-registrations-about = 其中 {$count} 个等待调用
tile-batches = 批次
tile-batches-about = 启动以来 {$count} 个
tile-answered = 应答耗时
tile-answered-about = 95% 的请求在此时间内得到应答
tile-registered = 注册耗时
tile-registered-about = 95% 的已完成注册在此时间内
tile-writes = 待写入
tile-writes-about = 等待数据库
chart-served = 已发放
chart-refused = 被本服务器拒绝
chart-cloud = 注册被拒绝
chart-later = 要求稍后重试
chart-words = 已发放 {$served}，被本服务器拒绝 {$refused}，注册被拒绝 {$cloud}，要求稍后重试 {$later}；每个柱最多 {$most}
chart-a-minute = 刻度上限：每分钟 {$count} 次；时间为 UTC
chart-20-minutes = 刻度上限：每 20 分钟 {$count} 次；时间为 UTC
chart-2-hours = 刻度上限：每 2 小时 {$count} 次；时间为 UTC
kind-unknown = 不在设备表中
chart-begins = 服务器启动于 {$time}，图表从此时开始。
chart-values = 数值
chart-from = 起始
chart-no-requests = 没有请求。

## Failures

failing-devices = 未获得证书的设备
failing-by-reason = 按原因
failing-by-enrollment = 按密钥的注册组
failing-by-address = 按地址
failing-forgotten = 被拒绝的设备太多，最早的已不再列出。
failing-partly = 并非所有设备都已与设备表核对：数量太多，或无法读取设备表。
failures-since = 自 {$time} 起
failures-only = 仅：{$reason}
failures-waiting = 因物联网平台或数据库未能发放，此后也未发放
failures-enrollment = 使用其他注册组的密钥
group-counts = {$devices} 台设备，{$requests} 次请求
failures-all = 显示所有设备
handshakes-all = 显示所有握手
failures-none = 没有。
at-least = 至少
failures-latest = 仅显示最近 {$count} 条。
failures-download = 下载 {$count} 个不在设备表中的 ID
failures-download-hint = 导入之前，请与工厂清单核对：持有密钥的任何人都可以发送任意 ID。不要导入清单之外的 ID。{$import}
failures-foreign = 在设备表中属于注册组 {$own}，但使用 {$key} 的密钥
column-device = 设备
column-reason = 原因
column-key-of = 密钥所属注册组
column-address = 地址
column-last = 最近一次
column-requests = 请求数
failures-imported-since = 之后已导入
failures-served-since = 之后已发放
failures-mended-since = 现已不是这种情况
handshakes-failed = 失败的握手
handshakes-counts = {$clients} 个客户端，{$handshakes} 次握手
handshakes-hint = 身份标识只是声称：在证明密钥之前，任何人都可以声称任何身份标识。
handshakes-forgotten = 失败的握手太多，最早的已不再列出。
column-identity = 身份标识
column-handshakes = 握手次数

## Concerns

database-unreadable = 无法读取数据库
database-unreadable-cause = 本服务器的磁盘或数据库文件。
database-unreadable-remedy = 检查磁盘是否已满、文件是否存在。消息说明了失败原因。
database-writes = {$times} 次数据库写入失败
database-writes-cause = 本服务器的磁盘已满或过慢，或其他程序占用了数据库。相关设备已被要求稍后重试。
database-writes-remedy = 释放磁盘空间，并结束占用数据库的程序。日志中有每次失败的原因。
cloud-silent = 无法连接物联网平台
cloud-silent-cause = 本服务器与 {$cloud} 之间的网络，或物联网平台本身；不是设备的问题。连续 {$times} 次调用失败（{$names}）。
cloud-slow = 物联网平台已 {$times} 秒未应答一次调用
cloud-slow-cause = 本服务器与 {$cloud} 之间的网络，或物联网平台本身；不是设备的问题。
cloud-slow-remedy = 请等待一分钟：应答可能仍会到达。如果没有，请检查本服务器的网络、DNS、防火墙和代理。设备无需处理：它们会自动重试。
cloud-silent-remedy = 请告知本服务器的管理员检查网络、DNS、防火墙和代理。如果都正常，请查看阿里云状态页（status.aliyun.com）并等待。设备无需处理：已有证书的设备照常获得证书，其余设备会自动重试。
cloud-account = 物联网平台拒绝本服务器的调用
cloud-account-cause = 本服务器使用的账号或 AccessKey；不是设备的问题。被拒绝的调用：{$names}。
cloud-account-remedy = 按消息在阿里云控制台或本服务器配置中修正。之后设备会自动重试。
cloud-product = 物联网平台拒绝产品 {$names}
cloud-product-cause = 该产品在此实例中不存在，或设备数已达上限；其他产品的设备不受影响。
cloud-product-remedy = 将配置中的 product_key 和 instance_id 与物联网平台控制台核对。
cloud-throttles = 物联网平台对此账号限流
cloud-throttles-cause = 该账号的调用超过物联网平台允许的频率：{$names}。可能有其他程序使用同一账号。
cloud-throttles-remedy = 如果很快消失则无需处理；certdist 会自动减速。若持续，请降低 qps，或查明还有什么在使用该账号。
cloud-fails = 对物联网平台的调用失败
cloud-fails-cause = 物联网平台返回错误。连续失败的调用：{$times} 次（{$names}）。
cloud-fails-remedy = 在 docs/cloud.md 中查找该代码。如果是物联网平台故障，请等待；设备会自动重试。
devices-refused = {$devices} 台设备无法注册
devices-refused-cause = 这些设备本身的问题，例如名称已被其他设备占用。最常见的原因如下。
devices-refused-remedy = 在物联网平台排除原因，然后在此重置设备：它们的下一次请求会完成注册。
wrong-enrollment = {$devices} 台设备使用其他注册组的密钥
wrong-enrollment-cause = 导入的清单有误，或设备的固件有误，或有人用该密钥冒用其 ID：{$names}。
wrong-enrollment-remedy = 请查看设备标签。如果是 {$key}：清单有误，请将设备导入注册组 {$key}。如果是 {$own}：固件有误，请刷入 {$own} 的固件，不要导入。如果现场没有这样的设备：有他人持有该密钥，请告知本服务器的管理员。
wrong-enrollment-remedy-several = 请查看设备标签。如果标签与密钥一致，则清单有误：请将设备导入该密钥的注册组。如果标签与设备表一致，则固件有误：请刷入正确的固件，不要导入。如果现场没有这样的设备，则有他人持有该密钥：请告知本服务器的管理员。
unconfigured = {$devices} 台设备所在的注册组未配置
unconfigured-cause = 本服务器的配置中没有注册组 {$names}，这些设备无法连接。
unconfigured-remedy = 在 certdist.toml 中添加该注册组并重新加载，或将设备导入其他注册组。
deleted-at-cloud = {$devices} 台设备在物联网平台被删除
deleted-at-cloud-cause = 有人通过物联网平台控制台或 API 删除了它们。其证书已失效。
deleted-at-cloud-remedy = 如果仍在使用，请在此重置：下一次请求会以相同名称重新注册。
draining = 服务器正在关闭
draining-cause = 操作员或系统已将其停止。不再接受新注册，并完成进行中的注册。
draining-remedy = 如果是有意的，则无需处理；否则请查看服务管理器的日志。
unknown-devices = {$devices} 台不在设备表中的设备请求证书
unknown-devices-cause = 其清单尚未导入，或 ID 与清单不一致，或未经授权的第三方持有 {$names} 的密钥并逐个试探 ID。
unknown-devices-remedy = 将这些 ID 与工厂清单核对，只导入清单上的 ID。它们都没有得到证书。如果有 ID 不在清单上，请告知本服务器的管理员，因为可能有他人持有该密钥。
wrong-key = {$times} 次连接失败：密钥错误或身份标识未知
wrong-key-cause = 设备的密钥不是本服务器所期望的，或其名称（身份标识）不为本服务器所知；也可能是未经授权的第三方在尝试密钥。
wrong-key-remedy = 请打开链接，按身份标识和地址找到设备。为其刷入当前固件后重试。如果仍然失败，请将其身份标识告知本服务器的管理员：这里配置或导入的密钥与之不同。如果现场没有这样的设备，请告知管理员可能有第三方在尝试密钥。
advice-handshake = 握手失败
advice-handshake-text = {$time} 有一个以此 ID 为身份标识的客户端从 {$address} 尝试连接：{$reason}。如果是该设备，请重新为其写入注册组 {$enrollment} 的固件或密钥；如果不是，则有人在用此 ID 尝试密钥。
guessing = 有人在逐个试探设备 ID
guessing-cause = 一个持有共享密钥的客户端不断请求无权获取的 ID。它已被限速，其他设备照常服务。
guessing-remedy = 下面的链接显示 ID 和地址。如果不是您的测试，请更换共享密钥并封锁该地址。
not-yours = { $devices ->
    [0] 有设备被使用其他设备密钥的客户端请求
   *[other] {$devices} 台设备被使用其他设备密钥的客户端请求
}
not-yours-cause = 固件发送了其他设备的 ID，或有人试图获取他人的证书。没有发放任何证书。
not-yours-remedy = 核对固件发送的身份和 ID：对于这种密钥，两者必须是同一台设备。
issued-already = { $devices ->
    [0] 有设备再次请求证书，但不被允许
   *[other] {$devices} 台设备再次请求证书，但不被允许
}
issued-already-cause = 设备以前已取得证书，其注册组的重发策略不允许再次发放；设备可能没有保存。
issued-already-remedy = 如果信任该设备，请在此重置：之后它可以再次取得证书。
held-ask = { $devices ->
    [0] 有不在设备表中的设备等待准入
   *[other] 有 {$devices} 台不在设备表中的设备等待准入
}
held-ask-cause = 其注册组会让持有正确密钥但不在设备表中的设备等待（unlisted = "hold"）。
held-ask-remedy = 如果这些设备属于您，请准入：certdist device waiting 列出它们，certdist device admit 将它们加入设备表。
closed-ask = { $devices ->
    [0] 有设备向已关闭或已满的注册组请求证书
   *[other] 有 {$devices} 台设备向已关闭或已满的注册组请求证书
}
closed-ask-cause = 设备还没有过证书，而其注册组不再向更多设备发放：closes 已过，或已达到 max_devices。
closed-ask-remedy = 如果该设备可以取得证书，请在配置中设置更晚的 closes 或更大的 max_devices，然后重新加载。
not-open-ask = { $devices ->
    [0] 有设备向尚未开放的注册组请求证书
   *[other] 有 {$devices} 台设备向尚未开放的注册组请求证书
}
not-open-ask-cause = 设备还没有过证书，而其注册组将在稍后开放（配置中的 opens）。设备被要求稍后重试，至少每小时一次。
not-open-ask-remedy = 如果现在就可以取得证书，请在配置中设置更早的 opens，然后重新加载。
malformed = {$times} 个请求无法理解
malformed-cause = 固件发送的路径、方法、格式或设备 ID 有误。
malformed-remedy = 应答会告诉固件错误所在（docs/device.md）。日志中有这些请求。
silent-clients = {$times} 次握手因设备停止应答而结束
silent-clients-cause = 设备与本服务器之间丢包，或设备已断电。
silent-clients-remedy = 如果很多：请检查无线、NAT 和防火墙。防火墙必须双向放行 UDP。
other-handshakes = {$times} 次握手因其他原因失败
other-handshakes-cause = 例如固件不支持本服务器的加密套件，或同一网络未完成的握手过多。
other-handshakes-remedy = 日志和 certdist_handshake_failures_total 显示原因。docs/device.md 列出加密套件。
clock = 本服务器的时钟偏差 {$times} 秒
clock-cause = 本机时钟与物联网平台的时钟不一致。这些页面和日志中的时间有同样的误差。调用使用正确的时间签名。
clock-remedy = 在本机启用时间同步（NTP）。
no-cloud = {$devices} 台设备没有证书，且未配置物联网平台
no-cloud-cause = 配置中没有 [iot_platform]，设备表中没有证书的设备会得到 5.02。
no-cloud-remedy = 配置 [iot_platform]，或导入证书。
unsealed = 数据库中有 {$times} 个明文密钥
unsealed-cause = 存储时未配置 database_key。取得该文件或备份的人都能读取。
unsealed-remedy = 配置 database_key，然后运行 certdist database seal（docs/operations.md）。
too-many = { $devices ->
    [0] 请求过多
   *[other] {$devices} 台设备请求过多
}
too-many-cause = {$times} 个请求超过了速率限制，得到 4.29。
too-many-remedy = 不断请求的设备固件有误。如果同一地址有很多设备同时请求，请提高限制。
queue = {$devices} 台设备等待注册
queue-cause = 同时到来的设备超过物联网平台的注册速度。
queue-remedy = 只要数量在减少，就无需处理。每台设备会自动重试并取得证书。
not-back = { $devices ->
    [0] 未能取得证书的设备没有再次请求
   *[other] {$devices} 台未能取得证书的设备没有再次请求
}
not-back-cause = 它们被要求稍后重试，或因此后没有再出现的故障被拒绝。它们可能已断电，或固件不会再次请求。如有最后的错误信息，见下方。
not-back-remedy = 请将其中一台重新通电，并在此查看其页面。
unsent = {$times} 个数据报未能发送
unsent-cause = 本服务器的网络或其缓冲区过小或过慢。设备会重复请求。
unsent-remedy = 若持续，请提高 net.core.wmem_max，或增加网络容量。
disabled-ask = { $devices ->
    [0] 有被禁用的设备请求证书
   *[other] {$devices} 台被禁用的设备请求证书
}
disabled-ask-cause = 操作员已在此禁用它们。
disabled-ask-remedy = 如果是有意的，则无需处理；否则请启用。
disabled-at-cloud = {$devices} 台设备在物联网平台被禁用
disabled-at-cloud-cause = 有人在物联网平台禁用了它们。它们有证书，但无法登录。
disabled-at-cloud-remedy = 如果是有意的，则无需处理；否则请在物联网平台启用。
title-key = 物联网平台拒绝本服务器的 AccessKey
title-credentials = 本服务器没有 AccessKey
title-permission = 本服务器的 AccessKey 缺少权限
title-bill = 物联网平台账号有逾期账单
title-quota = 物联网平台不再接受产品 {$names} 的设备
cause-key = 本服务器使用的 AccessKey 不被物联网平台接受；不是设备的问题。更正之前无法注册任何设备；已有证书的设备照常获得证书。被拒绝的调用：{$names}。
cause-credentials = 本服务器无法读取凭证，因此无法调用物联网平台。
cause-permission = 该 AccessKey 的 RAM 用户无权进行这些调用：{$names}。
cause-product = 本服务器使用的物联网平台实例中没有产品 {$names}。不是设备的问题，其他产品的设备也不受影响。
cause-quota = 该产品或实例的设备数已达上限。已注册的设备照常发放。
-credentials-place = 在 certdist.toml 中，[iot_platform] 下的 credentials 一行说明 AccessKey 的存放位置。文件更改后会自动读取；更改环境变量后，请运行 systemctl restart certdist。之后设备会自动重试。

## Remedies for codes of IoT Platform

remedy-key-unknown = 不存在该 AccessKey。请更正其 ID：常见原因是多余的空格，或其他站点的 AccessKey。{ -credentials-place }
remedy-key-inactive = 该 AccessKey 已被禁用。请在 RAM 控制台启用，或使用另一个。{ -credentials-place }
remedy-key-secret = 请告知本服务器的管理员：AccessKey Secret 与 AccessKey ID 不匹配，需要重新填写两者。{ -credentials-place }如果两者都无误，则请求可能被本服务器与物联网平台之间的代理修改：请检查该代理。
remedy-token = 安全令牌已过期或与 AccessKey 不匹配。请更新凭证。{ -credentials-place }
remedy-permission = 该 AccessKey 缺少权限。请为其 RAM 用户添加 docs/cloud.md 中的策略。
remedy-account = 该账号未开通物联网平台。请开通，并检查账号和地域。
remedy-bill = 账号欠费，请缴费。
remedy-instance = 该地域没有此实例。请更正 certdist.toml 中的 instance_id 和 region，然后运行 systemctl restart certdist。
remedy-product = 请告知本服务器的管理员。管理员在物联网平台控制台查找 {$names}。如果有：certdist.toml 中的 instance_id 有误，请更正并运行 systemctl restart certdist。如果该产品在那里使用另一个 productKey：注册组的 product_key 有误，请更正并运行 systemctl reload certdist，然后用带 productKey 列的文件重新导入设备，因为设备保留导入时的产品。如果完全没有：请创建它，然后按另一个 productKey 的情况处理。之后设备会自动重试。
remedy-quota = 设备配额已用完。请在物联网平台提高配额，或删除设备。
remedy-certificate = TLS：物联网平台的证书被拒绝。请检查 ca_file、时钟和 endpoint。
remedy-credentials = 错误信息说明了无法读取 AccessKey 的原因。{ -credentials-place }
remedy-network = 请告知本服务器的管理员检查到物联网平台的网络、DNS、防火墙和代理。如果都正常，请查看阿里云状态页（status.aliyun.com）并等待。设备无需处理：已有证书的设备照常获得证书，其余设备会自动重试。
remedy-not-an-answer = 应答的不是物联网平台。请检查是否有代理的登录页面，或 endpoint 是否有误。

## Import

import-file = 设备表文件
import-file-hint = CSV 或 JSON 行，最大 16 MiB；更大的文件请用 {$command} 导入。首行为表头，其中只有 {$required} 是必需的：{$columns}
import-enrollment = 未注明注册组的行归入
import-each-its-own = 每行自带注册组
import-unknown-enrollment = 配置中没有注册组 {$enrollment}。请从列表中选择。
import-preview = 预览
import-preview-hint = 显示将要发生的更改，暂不更改任何内容。
import-operators-only = 只有操作员可以导入
import-busy = 其他文件正在发送和导入，请在完成后重试。
import-gone = 文件已不在此处：已经导入，或确认太晚。请重新发送。
import-errors-gone = 错误行清单已不在此处。请重新发送文件。
import-too-large = 文件太大
import-too-large-text = 文件超过 16 MiB。请用 {$command} 导入，可与运行中的服务器同时使用。
import-it = 导入
import-progress = 注册组的进度
import-done-no-number = 文件已导入。此次导入无法撤销。
imported = 已导入
imported-text = {$file}：{$time} 添加 {$added} 台设备，更改 {$changed} 台。
nothing-imported = 没有导入任何内容
nothing-changed-yet = 尚未更改任何内容
preview-counts = {$file}：将添加 {$added} 台设备，更改 {$changed} 台，{$unchanged} 台不变。
preview-pair = {$count} 行归入注册组 {$enrollment}，产品 {$product}
preview-other-pairs = {$count} 行归入其他注册组和产品
preview-ends = 存储为：首个 {$first}，末个 {$last}
preview-odd = 导入前请留意：
preview-nothing-new = 设备表中已有全部内容。
bad-lines = 错误行
bad-lines-count = {$file} 有 {$count} 个错误行。请修正后重新发送。
bad-lines-download = 下载全部 {$count} 个错误行
bad-lines-line = 行
bad-lines-column = 列
bad-lines-reason = 错误及期望的内容
bad-lines-more = 另有 {$count} 行与第 {$line} 行类似。
bad-line = 整行有误
bad-device-id = 设备 ID 有误
bad-enrollment = 注册组有误
bad-product = 产品有误
bad-name = 设备名称有误
bad-secret = 设备密钥（DeviceSecret）有误
bad-iotid = IotId 有误
bad-key = 预共享密钥或其标识有误
bad-value = 值有误
imports-title = 最近 30 天的导入
imports-file = 文件
imports-time = 时间
imports-who = 操作者
imports-added = 添加
imports-changed = 更改
imports-undo = 撤销
imports-undone = 于 {$time} 撤销
imports-more = 更早的导入请用 {$command} 查看。
undo-title = 撤销导入
undo-it = 撤销
undo-the-rest = 撤销其余部分
undo-done = 已撤销导入
undo-removed = 将删除其添加的 {$count} 台设备
undo-certificates = 其中 {$count} 台的证书由此次导入带来
undo-restored = 将恢复其更改的 {$count} 台设备的原值
undo-left = {$count} 台设备保持不变
undo-changed-title = 部分设备此后已有变化
undo-changed = 此次导入的 {$all} 台设备中有 {$count} 台此后已注册、发放、禁用、启用、删除或被另一次导入更改，或正在注册。这些设备保持不变，其余可以撤销。
undo-left-in-table = 此次导入的 {$count} 台设备仍在表中，保持现状：
undo-preview-rest = 预览撤销其余部分
undo-again = 此次导入已经撤销过。
undo-keys = 它替换或删除了 {$count} 台设备的密钥，而旧密钥不会保留。请改为重新导入原来的文件。
undo-conflict = 设备 {$device} 无法恢复：{$reason}。请先给两台设备之一换一个名称。
undo-refused = 此次导入无法撤销
undo-unknown = 没有这次导入
undo-unknown-text = 最近 30 天内没有此编号的导入。
back = 返回
viewer-signed-in = 您以查看者身份登录。
